"""What the paragraph of methods cites: how it is named there, and the reference."""

from __future__ import annotations

CITATIONS = {
    "noise2noise": (
        "Lehtinen et al., 2018",
        "Lehtinen J, Munkberg J, Hasselgren J, Laine S, Karras T, Aittala M, Aila T. Noise2Noise: Learning image restoration "
        "without clean data. Proceedings of the 35th International Conference on Machine Learning (ICML), 2018.",
    ),
    "ssdu": (
        "Yaman et al., 2020",
        "Yaman B, Hosseini SAH, Moeller S, Ellermann J, Uğurbil K, Akçakaya M. Self-supervised learning of physics-guided "
        "reconstruction neural networks without fully sampled reference data. Magnetic Resonance in Medicine 84, 2020.",
    ),
    "k-weighted-ssdu": (
        "Millard and Chiew, 2023",
        "Millard C, Chiew M. A theoretical framework for self-supervised MR image reconstruction using sub-sampling via variable "
        "density Noisier2Noise. IEEE Transactions on Computational Imaging 9, 2023.",
    ),
    "robust-ssdu": (
        "Millard and Chiew, 2024",
        "Millard C, Chiew M. Clean self-supervised MRI reconstruction from noisy, sub-sampled training data with Robust SSDU. "
        "Bioengineering 11, 2024.",
    ),
    "equivariant": (
        "Chen et al., 2021",
        "Chen D, Tachella J, Davies ME. Equivariant imaging: Learning beyond the range space. IEEE/CVF International Conference "
        "on Computer Vision (ICCV), 2021.",
    ),
    "robust-equivariant": (
        "Chen et al., 2022",
        "Chen D, Tachella J, Davies ME. Robust equivariant imaging: A fully unsupervised framework for learning to image from "
        "noisy and partial measurements. IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR), 2022.",
    ),
    "multi-operator": (
        "Tachella et al., 2022",
        "Tachella J, Chen D, Davies M. Unsupervised learning from incomplete measurements for inverse problems. Advances in "
        "Neural Information Processing Systems (NeurIPS), 2022.",
    ),
    "sure": (
        "Ramani et al., 2008",
        "Ramani S, Blu T, Unser M. Monte-Carlo SURE: A black-box optimization of regularization parameters for general denoising "
        "algorithms. IEEE Transactions on Image Processing 17, 2008.",
    ),
    "cascade": (
        "Schlemper et al., 2018",
        "Schlemper J, Caballero J, Hajnal JV, Price AN, Rueckert D. A deep cascade of convolutional neural networks for dynamic "
        "MR image reconstruction. IEEE Transactions on Medical Imaging 37, 2018.",
    ),
    "varnet": (
        "Sriram et al., 2020",
        "Sriram A, Zbontar J, Murrell T, Defazio A, Zitnick CL, Yakubova N, Knoll F, Johnson P. End-to-end variational networks "
        "for accelerated MRI reconstruction. Medical Image Computing and Computer Assisted Intervention (MICCAI), 2020.",
    ),
    "fastmri": (
        "Zbontar et al., 2018",
        "Zbontar J, Knoll F, Sriram A, et al. fastMRI: An open dataset and benchmarks for accelerated MRI. arXiv:1811.08839, 2018.",
    ),
    "espirit": (
        "Uecker et al., 2014",
        "Uecker M, Lai P, Murphy MJ, Virtue P, Elad M, Pauly JM, Vasanawala SS, Lustig M. ESPIRiT - an eigenvalue approach to "
        "autocalibrating parallel MRI: Where SENSE meets GRAPPA. Magnetic Resonance in Medicine 71, 2014.",
    ),
    "compression": (
        "Buehrer et al., 2007",
        "Buehrer M, Pruessmann KP, Boesiger P, Kozerke S. Array compression for MRI with large coil arrays. Magnetic Resonance in "
        "Medicine 57, 2007.",
    ),
    "sense": (
        "Pruessmann et al., 2001",
        "Pruessmann KP, Weiger M, Börnert P, Boesiger P. Advances in sensitivity encoding with arbitrary k-space trajectories. "
        "Magnetic Resonance in Medicine 46, 2001.",
    ),
    "sparse": (
        "Lustig et al., 2007",
        "Lustig M, Donoho D, Pauly JM. Sparse MRI: The application of compressed sensing for rapid MR imaging. Magnetic Resonance "
        "in Medicine 58, 2007.",
    ),
    "tv": (
        "Block et al., 2007",
        "Block KT, Uecker M, Frahm J. Undersampled radial MRI with multiple coils. Iterative image reconstruction using a total "
        "variation constraint. Magnetic Resonance in Medicine 57, 2007.",
    ),
    "admm": (
        "Boyd et al., 2011",
        "Boyd S, Parikh N, Chu E, Peleato B, Eckstein J. Distributed optimization and statistical learning via the alternating "
        "direction method of multipliers. Foundations and Trends in Machine Learning 3, 2011.",
    ),
    "cycle-spinning": (
        "Coifman and Donoho, 1995",
        "Coifman RR, Donoho DL. Translation-invariant de-noising. In: Wavelets and Statistics, Springer, 1995.",
    ),
    "daubechies": (
        "Daubechies, 1988",
        "Daubechies I. Orthonormal bases of compactly supported wavelets. Communications on Pure and Applied Mathematics 41, 1988.",
    ),
    "noise2void": (
        "Krull et al., 2019",
        "Krull A, Buchholz TO, Jug F. Noise2Void - learning denoising from single noisy images. IEEE/CVF Conference on Computer "
        "Vision and Pattern Recognition (CVPR), 2019.",
    ),
    "horvitz-thompson": (
        "Horvitz and Thompson, 1952",
        "Horvitz DG, Thompson DJ. A generalization of sampling without replacement from a finite universe. Journal of the "
        "American Statistical Association 47, 1952.",
    ),
    "hajek": (
        "Hájek, 1964",
        "Hájek J. Asymptotic theory of rejective sampling with varying probabilities from a finite population. Annals of "
        "Mathematical Statistics 35, 1964.",
    ),
}  # fmt: skip


def cited(*names: str) -> str:
    """ "(Lustig et al., 2007; Boyd et al., 2011)"."""
    return f"({'; '.join(CITATIONS[name][0] for name in names)})"


def references(text: str) -> tuple[str, ...]:
    """Those that a text cites, in alphabetical order."""
    return tuple(sorted(full for short, full in CITATIONS.values() if short in text))
