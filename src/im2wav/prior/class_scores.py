"""What an image shows, as scores of labels: a condition that is read from the image embedding by fixed directions.

A reading that a prior learns from pseudo-embeddings gets worse on photos the longer it is trained. These directions are
those of the image encoder's own classes, and are not trained.
"""

import torch
from torch import Tensor, nn


class ClassScores(nn.Module):
    """Scores of labels for image embeddings, [..., D] -> [..., C], which sum to 1; nothing of it is learnt.

    The score of a label is the softmax of the largest projection of the embedding, without the mean of images, on the
    directions of the label. `set_directions` sets these buffers, which checkpoints keep.
    """

    SHARPNESS = 90.0  # photos lie about 0.1 to 0.4 into the direction of their class, and 0.03 into that of others

    directions: Tensor
    mean: Tensor
    label_of_row: Tensor

    def __init__(self, classes: int, rows: int, dim: int):
        super().__init__()
        if not classes <= rows:
            raise ValueError(f"class_rows={rows}: expected at least one for each of the classes={classes}")
        self.classes = classes
        self.register_buffer("directions", torch.zeros(rows, dim))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("label_of_row", torch.arange(rows) % classes)

    def set_directions(self, directions: Tensor, mean: Tensor, label_of_row: Tensor) -> None:
        """Set directions [M, D], the mean of image embeddings [D], and the label of each direction [M], from 0.

        Raises:
            ValueError: other numbers of labels or directions than those of the network.
        """
        labels = int(label_of_row.max()) + 1
        if directions.shape != self.directions.shape or labels != self.classes:
            raise ValueError(
                f"the data have {labels} classes with {len(directions)} directions of {directions.shape[1]} "
                f"dimensions, the network {self.classes}, {len(self.directions)} and {self.directions.shape[1]}: set "
                f"model.net.conditioning.classes={labels} model.net.conditioning.class_rows={len(directions)}"
            )
        self.directions.copy_(directions)
        self.mean.copy_(mean)
        self.label_of_row.copy_(label_of_row)

    def has_directions(self, directions: Tensor, mean: Tensor, label_of_row: Tensor) -> bool:
        """Whether these are the arguments of `set_directions`, but for rounding to fp16."""
        given = (directions, mean, label_of_row)
        own = (self.directions, self.mean, self.label_of_row)
        return all(
            a.shape == b.shape and torch.allclose(a.float(), b.float().cpu(), atol=1e-3)
            for a, b in zip(given, own, strict=True)
        )

    def forward(self, clip: Tensor) -> Tensor:
        """Scores of embeddings of unit norm."""
        projected = (clip.float() - self.mean.float()) @ self.directions.float().t()
        index = self.label_of_row.expand(projected.shape)
        largest = projected.new_full((*projected.shape[:-1], self.classes), -torch.inf)
        largest = largest.scatter_reduce(-1, index, projected, "amax")
        return (self.SHARPNESS * largest).softmax(-1)
