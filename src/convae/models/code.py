"""The compact code: few numbers that keep of the features what survives a small change of the image."""

from torch import nn

from convae.errors import ConvaeError
from convae.models.windows import LEAST_VARIANCE, Moments, denoising_directions, principal_directions


def fit_code(moments: Moments, components: int, ridge: float, scale: str) -> nn.Linear:
    """The linear map from features `[N, D]` to the code `[N, components]`.

    Args:
        moments: of the features of training images and of their corrupted copies; without copies, the code consists of
            the principal components.
        components: number of directions, at most D.
        ridge: added to the variances, in units of the mean variance.
        scale: `equal` weighs all directions alike; `shrunk` weighs each by sqrt(w / (1 - w)), where w is the part of it
            that survives: the deviation of signal over that of noise. Overall the code is as long as the features, so
            that the same settings of a classifier suit both.

    Raises:
        ConvaeError: there are fewer features than components.

    Example:
        >>> import torch
        >>> moments = Moments()
        >>> moments.add(torch.tensor([[-2.0, 1], [2, 1], [-2, -1], [2, -1]]))
        >>> code = fit_code(moments, components=1, ridge=0.1, scale="equal")
        >>> code(torch.tensor([[2.0, 1.0]])).abs().detach().tolist()  # the first feature varies most
        [[2.2360680103302]]
    """
    total, between = moments.second()
    if components > len(total):
        raise ConvaeError(f"features.code.components = {components}: images have {len(total)} features; lower it")
    if moments.paired:
        directions, kept = denoising_directions(total, between, components, ridge)
    else:
        directions, kept = principal_directions(total, components, ridge)
    if scale == "shrunk":
        kept = kept.clamp(0, 1 - 1e-6)
        directions = directions * (kept / (1 - kept)).sqrt()[:, None]
    lengths = ((directions @ total) * directions).sum().clamp(min=LEAST_VARIANCE)
    code = nn.Linear(len(total), components).requires_grad_(False)
    code.weight.copy_(directions * (total.trace() / lengths).sqrt())
    code.bias.copy_(-code.weight @ moments.mean)
    return code
