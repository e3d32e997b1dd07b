"""What replaces removed pixels: a colour, a blur, or what their neighbours suggest."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from heedmap.errors import OptionError
from heedmap.metrics.maps import check_known

BASELINES = ("mean", "black", "blur")
BLUR_SIDE, BLUR_SIGMA = 11, 5
STRAIGHT, DIAGONAL = 1 / 6, 1 / 12  # weights of the eight neighbours, Rong et al. (2022), section 4.2


def stand_in(images: Tensor, baseline: str | Tensor) -> Tensor:
    """Return what images (B, 3, H, W) in [0, 1] become when nothing of them is left.

    Args:
        baseline: ``mean`` (each image's own mean colour), ``black``, ``blur`` (see :func:`blurred`), or a colour (3,)
            in [0, 1]; ``classifier.mean.flatten()`` is the zero of the network's own normalised space.

    Raises:
        OptionError: an unknown word, or a tensor that is no colour.
    """
    if isinstance(baseline, Tensor):
        if baseline.shape != images.shape[1:2]:
            raise OptionError(f"A baseline of shape {tuple(baseline.shape)} is no colour; ({images.shape[1]},) is one.")
        return baseline.to(images)[:, None, None].expand_as(images)
    check_known("baseline", baseline, BASELINES)
    if baseline == "mean":
        return images.mean((2, 3), keepdim=True).expand_as(images)
    return torch.zeros_like(images) if baseline == "black" else blurred(images)


def blurred(images: Tensor) -> Tensor:
    """Blur images as RISE's published code does, with a kernel of 11 x 11 and sigma 5.

    That kernel is a Gaussian of sigma 5 folded back into 11 x 11 pixels at its rim, so nearly flat. One difference: at
    the image's border the code pads with the mean colour of ImageNet, here the border pixels are repeated.
    """
    from scipy.ndimage import gaussian_filter

    point = np.zeros((BLUR_SIDE, BLUR_SIDE))
    point[BLUR_SIDE // 2, BLUR_SIDE // 2] = 1
    kernel = torch.from_numpy(gaussian_filter(point, BLUR_SIGMA)).to(images)
    reach, channels = BLUR_SIDE // 2, images.shape[1]
    padded = F.pad(images, (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(padded, kernel.expand(channels, 1, -1, -1), groups=channels)


def imputed(image: Tensor, removed: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Replace the removed pixels by noisy linear imputation.

    Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods" (ICML 2022), section 4.2.
    Each removed pixel becomes the weighted mean of its eight neighbours (1/6 straight, 1/12 diagonal, at the border
    those that there are, weights scaled to sum to one), all removed pixels at once by one sparse linear system; then
    Gaussian noise is added. Differences: the noise is in pixel units (theirs in units of the normalised image), and
    the result is clamped to [0, 1].

    Args:
        image: (C, H, W) in [0, 1], on the CPU.
        removed: (H, W) bool; at least one pixel must be left, else OptionError.
        noise, generator: its standard deviation, and where it comes from.
    """
    from scipy.sparse.linalg import splu

    gone = removed.numpy()
    if gone.all():
        raise OptionError("All pixels are removed, so there is nothing to impute from; remove a share below 1.")
    if not gone.any():
        return image.clone()
    matrix, known = _linear_system(gone, image.double().numpy())
    # The matrix is symmetric and positive definite: no pivoting is needed, and saying so halves the time.
    factors = splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    solved = torch.from_numpy(factors.solve(known)).to(image.dtype).T  # (C, n)
    solved = solved + noise * torch.randn(solved.shape, generator=generator, dtype=image.dtype)
    filled = image.clone()
    filled[:, removed] = solved.clamp(0, 1)
    return filled


def _linear_system(gone: NDArray[np.bool_], pixels: NDArray[np.float64]) -> tuple[object, NDArray[np.float64]]:
    """Return matrix (n, n) and right side (n, C) for n removed pixels; j runs over the neighbours in the image.

    For each removed i: sum_j w_ij x_i - sum_(j removed) w_ij x_j = known part.
    """
    from scipy.sparse import csc_matrix

    height, width = gone.shape
    count = int(gone.sum())
    number = np.full(gone.shape, -1)
    number[gone] = np.arange(count)
    own, known = np.zeros(count), np.zeros((count, len(pixels)))
    rows, columns, weights = [np.arange(count)], [np.arange(count)], [own]
    for down, right in ((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x):
        weight = DIAGONAL if down and right else STRAIGHT
        pixel = np.s_[max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
        neighbour = np.s_[max(0, down) : height - max(0, -down), max(0, right) : width - max(0, -right)]
        mine, other = number[pixel].ravel(), number[neighbour].ravel()
        colours = pixels[:, neighbour[0], neighbour[1]].reshape(len(pixels), -1)
        removed, shared = mine >= 0, (mine >= 0) & (other >= 0)
        given = removed & (other < 0)
        own[mine[removed]] += weight  # a pixel meets each neighbour once, so the places are distinct
        known[mine[given]] += weight * colours[:, given].T
        rows.append(mine[shared])
        columns.append(other[shared])
        weights.append(np.full(int(shared.sum()), -weight))
    place = (np.concatenate(rows), np.concatenate(columns))
    return csc_matrix((np.concatenate(weights), place), (count, count)), known
