"""The small networks between a feature and the space in which views are compared."""

from torch import nn


def batch_norm_mlp(in_features: int, hidden_features: int, out_features: int, num_layers: int) -> nn.Sequential:
    """Linear layers, each with a batch norm after it, the inner ones with ReLU; that of the output learns no scale.

    Chen et al., "An Empirical Study of Training Self-Supervised Vision Transformers" (2021), section 5.

    Args:
        in_features: width of the input.
        hidden_features: width between the layers.
        out_features: width of the output.
        num_layers: linear layers.

    Returns:
        a network (B, in_features) -> (B, out_features).
    """
    layers: list[nn.Module] = []
    for _ in range(num_layers - 1):
        layers += [
            nn.Linear(in_features, hidden_features, bias=False),  # the batch norm has a bias
            nn.BatchNorm1d(hidden_features),
            nn.ReLU(inplace=True),
        ]
        in_features = hidden_features
    return nn.Sequential(
        *layers, nn.Linear(in_features, out_features, bias=False), nn.BatchNorm1d(out_features, affine=False)
    )
