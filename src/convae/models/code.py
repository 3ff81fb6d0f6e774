"""The compact code: few numbers that keep of the features what survives a small change of the image."""

from torch import nn

from convae.models.windows import LEAST_VARIANCE, Moments, denoising_directions, principal_directions


def fit_code(moments: Moments, components: int, ridge: float, scale: str) -> nn.Linear:
    """The linear map from features `[N, D]` to the code `[N, components]`.

    Args:
        moments: of the features of training images and of their corrupted copies; without copies, the code consists of
            the principal components.
        components: number of directions, at most D; `shrunk` keeps only those that survive at all.
        ridge: added to the variances, in units of the mean variance.
        scale: `equal` weighs all directions alike; `shrunk` weighs each by sqrt(w / (1 - w)), where w is the part of it
            that survives: the deviation of signal over that of noise. The code has the same total variance as the
            features of images and copies, so that the same settings of a classifier suit both.

    Raises:
        ConvaeError: the covariance is singular in single precision.

    Example:
        >>> import torch
        >>> moments = Moments()
        >>> moments.add(torch.tensor([[-2.0, 1], [2, 1], [-2, -1], [2, -1]]))
        >>> code = fit_code(moments, components=1, ridge=0.1, scale="equal")
        >>> code(torch.tensor([[2.0, 1.0]])).abs().detach().tolist()  # the first feature varies most
        [[2.2360680103302]]
    """
    covariance, between = moments.second()
    if moments.paired:
        directions, kept = denoising_directions(covariance, between, components, ridge)
    else:
        directions, kept = principal_directions(covariance, components, ridge)
    if scale == "shrunk":
        kept = kept.clamp(min=0)
        # Of principal components, 1 - w is the ridge times this, and may be less than rounding lets w show.
        noise = (1 - kept).clamp(min=1e-6) if moments.paired else directions.square().sum(dim=1)
        surviving = max(1, int((kept > 0).sum()))
        directions = (directions * (kept / noise).sqrt()[:, None])[:surviving]
    variance = ((directions @ covariance) * directions).sum().clamp(min=LEAST_VARIANCE)
    code = nn.Linear(len(covariance), len(directions), device=covariance.device).requires_grad_(False)
    code.weight.copy_(directions * (covariance.trace() / variance).sqrt())
    code.bias.copy_(-code.weight @ moments.mean)
    return code
