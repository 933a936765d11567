"""mri-n2n: MRI reconstruction that learns from scans nobody ever sampled fully. Research use only.

The verbs of the command line: `simulate`, `train`, `reconstruct`, `denoise`, `evaluate`, `verify`, `info`, `convert`. `simulate`, `reconstruct`,
`denoise` and `evaluate` take arrays or paths.
Importing this package changes no process-wide setting and imports torch only when a verb is used.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("mri-n2n")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "unknown"

_VERBS = {
    "simulate": ("mri_n2n.simulation", "simulate"),
    "SimulationOptions": ("mri_n2n.simulation", "SimulationOptions"),
    "train": ("mri_n2n.training", "train"),
    "TrainOptions": ("mri_n2n.options", "TrainOptions"),
    "Protocol": ("mri_n2n.batches", "Protocol"),
    "reconstruct": ("mri_n2n.reconstruction", "reconstruct"),
    "denoise": ("mri_n2n.denoising.denoise", "denoise"),
    "evaluate": ("mri_n2n.judgement", "evaluate"),
    "verify": ("mri_n2n.verification", "verify"),
    "info": ("mri_n2n.inspection", "describe"),
    "convert": ("mri_n2n.conversion", "convert"),
    "Acquisition": ("mri_n2n.acquisition", "Acquisition"),
}
__all__ = [*_VERBS, "__version__"]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str):
    """Import a verb's module when it is first asked for, so that `import mri_n2n` is quick."""
    if name not in _VERBS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _VERBS[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value
