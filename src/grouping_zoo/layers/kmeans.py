"""K-means on unit vectors, whose centroids group an image's pixels by their content.

Wu et al., "Visual Transformers: Token-based Image Representation and Processing for Computer Vision" (2020),
appendix C, listing 1.

Shape legend: B batch, N points, K centroids, C width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def spherical_kmeans(points: Tensor, start: Tensor, num_steps: int) -> Tensor:
    """Lloyd's algorithm on points and centroids of length 1.

    One step, for one image:

        for n in range(N):
            nearest[n] = argmin(norm(points[n] - centroids[k]) for k in range(K))  # ties: the lowest index
        for k in range(K):
            own = [points[n] for n in range(N) if nearest[n] == k]
            centroids[k] = normalize(mean(own)) if own else centroids[k]

    A centroid that is nearest to no point stays where it is. Centroids are constants to the gradient.

    Args:
        points: (B, N, C) floats, normalised here.
        start: (B, K, C) first centroids, normalised here.
        num_steps: number of steps.

    Returns:
        (B, K, C) unit vectors, at least float32.
    """
    dtype = torch.promote_types(points.dtype, torch.float32)
    points, centroids = F.normalize(points.to(dtype), dim=2), F.normalize(start.to(dtype), dim=2)
    for _ in range(num_steps):
        # Between unit vectors the smallest distance is the largest product.
        nearest = (points @ centroids.transpose(1, 2)).argmax(dim=2)  # (B, N)
        members = F.one_hot(nearest, centroids.shape[1]).to(dtype).transpose(1, 2)  # (B, K, N)
        # The sum points where the mean does.
        means = F.normalize(members @ points, dim=2)
        centroids = torch.where(members.any(dim=2, keepdim=True), means, centroids)
    return centroids
