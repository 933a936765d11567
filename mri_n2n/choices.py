"""What the command line lets one choose from. Nothing here imports torch; tests compare with what there is."""

MASKS = ("roulette", "gaussian-points", "random-lines", "equispaced-lines", "gaussian-lines")
METHODS = (
    "auto",
    "noise2noise",
    "ssdu",
    "k-weighted-ssdu",
    "robust-ssdu",
    "equivariant",
    "robust-equivariant",
    "multi-operator",
    "robust-multi-operator",
    "noise2void",
    "supervised",
    "noise2noise-2018",
    "supervised-2018",
)
NETWORKS = ("unrolled", "unet", "fastmri-varnet", "fastmri-unet", "denoiser")
BASELINES = ("zero-filled", "sense", "tv", "wavelet")
CORRUPTIONS = (
    "gaussian",
    "rician",
    "rician-corrected",
    "brown",
    "poisson",
    "bernoulli",
    "text",
    "impulse",
    "spikes",
)
BODIES = ("n2v2", "n2v", "red30", "dncnn")
DENOISERS = ("auto", "n2v", "n2v2", "structn2v")
SCAN_FORMATS = ("fastmri-hdf5", "mrd", "cfl", "npy", "npy-coils", "npy-slices")
