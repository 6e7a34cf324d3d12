"""Token classification: one class per token of a sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from torch import Tensor, nn
from typing_extensions import Doc, Unpack

from sparsemtl.errors import LabelError, ParameterError
from sparsemtl.heads.tokens import TokenHead
from sparsemtl.registry.parameters import validated
from sparsemtl.tasks.classes import Classes, ClassOptions, task_options
from sparsemtl.tasks.likelihoods import PositionCategorical
from sparsemtl.tasks.metrics.compute_groups import group_metrics
from sparsemtl.tasks.task import Task, update_labelled

if TYPE_CHECKING:
    from torchmetrics.metric import Metric


class TokenClassification(Task):
    """One class of several per token, such as a part of speech or a named entity.

    Labels have shape (B, S) and lie in 0 .. classes - 1; outputs are logits (B, S, classes), as in transformers. The
    loss is the mean cross-entropy of all labelled tokens of a batch. Metrics: `accuracy` and `f1_macro` over labelled
    tokens; if the classes are BIO tags (`O`, `B-PER`, `I-PER`), `entity_f1` over whole entities. Metrics of your own
    read logits (B, classes, S) and labels (B, S).

    Examples:
        >>> task = TokenClassification("tags", ["O", "B-PER", "I-PER"])
        >>> logits, labels = torch.zeros(1, 4, 3), torch.tensor([[1, 2, 0, -100]])  # the last token is padding
        >>> round(task.loss(logits, labels).item(), 4)
        1.0986
    """

    output_axis = 2

    @validated
    def __init__(
        self,
        name: Annotated[str, Doc("Name of the task.")],
        classes: Annotated[int | Sequence[str], Doc("Number of classes, at least 2, or their names.")],
        *,
        ignore_index: Annotated[int, Doc("Label of tokens without one, such as padding; none of the classes.")] = -100,
        **options: Unpack[ClassOptions],
    ) -> None:
        super().__init__(name, **task_options(options))
        self._classes = Classes(name, classes, ignore_index, options, of="token")
        self._classes.check_ignore_index()
        self.class_names = self._classes.names
        self.class_weights = self._classes.weights
        self.ignore_index = ignore_index
        self.label_smoothing = options["label_smoothing"]

    @property
    def outputs(self) -> int:
        """One logit per class."""
        return len(self.class_names)

    @property
    def default_likelihood(self) -> PositionCategorical:
        """Softmax per token."""
        return PositionCategorical(self.ignore_index, class_axis=self.output_axis)

    def head(self, features: int | None = None, stride: int | None = None) -> nn.Module:
        """Return a linear layer on the features of every token; see `Task.head`.

        Raises:
            ParameterError: if the encoder has no `out_features`.
        """
        if features is None:
            raise ParameterError(
                f"task {self.name!r}: its default head needs the width of the encoder's token features. Set "
                f"`out_features` on the encoder, or pass heads={{{self.name!r}: module}}."
            )
        return TokenHead(features, self.outputs)

    def known(self, target: Tensor) -> Tensor:
        """Return a mask (B, S) of the tokens whose label is not the ignore index."""
        return target != self.ignore_index

    def class_counts(self, label: Tensor) -> dict[str, int]:
        """Return name of every class -> number of its known labels."""
        return self._classes.counts(label, self.known(label))

    def check_labels(self, target: Tensor) -> None:
        """Raise a LabelError unless labels are class indices or the ignore index."""
        if target.is_floating_point() or target.ndim != 2:
            raise LabelError(
                f"task {self.name!r}: expected whole numbers of shape (batch, tokens), got {target.dtype} of shape "
                f"{tuple(target.shape)}."
            )
        self._classes.check_labels(target, self.known)

    def check_output(self, output: Tensor, target: Tensor) -> None:
        """Raise if the outputs have another width than the classes, or another number of tokens than the labels."""
        if output.ndim != 3 or output.shape[2] != self.outputs:
            raise ParameterError(
                f"task {self.name!r}: its head must give outputs of shape (batch, tokens, {self.outputs}), got "
                f"{tuple(output.shape)}."
            )
        if output.shape[1] != target.shape[1]:
            raise LabelError(
                f"task {self.name!r}: outputs of {output.shape[1]} tokens, labels of {target.shape[1]}. Pad the labels "
                f"like the inputs, with {self.ignore_index}."
            )

    def cast(self, target: Tensor) -> Tensor:
        """Return labels (B, S) as int64."""
        return target.long()

    def default_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross-entropy of the labelled tokens."""
        return self._classes.loss(output.transpose(1, 2), target)

    def default_metrics(self) -> dict[str, Metric]:
        """Return accuracy (micro) and macro F1 over labelled tokens; of BIO tags, F1 of entities as the first."""
        from torchmetrics.classification import MulticlassF1Score

        from sparsemtl.tasks.entities import EntityF1, are_bio_tags
        from sparsemtl.tasks.metrics.class_metrics import Accuracy

        n, ignored = self.outputs, self.ignore_index
        metrics: dict[str, Metric] = {
            "accuracy": Accuracy(n, ignore_index=ignored),
            "f1_macro": MulticlassF1Score(n, average="macro", ignore_index=ignored, validate_args=False),
        }
        group_metrics(metrics, "accuracy", "f1_macro")
        if are_bio_tags(self.class_names):
            return {"entity_f1": EntityF1(self.class_names, ignore_index=ignored), **metrics}
        return metrics

    def checked_update(self, metrics: Mapping[str, Metric], output: Tensor, label: Tensor) -> None:
        """Add the sequences of a batch with a labelled token to metrics."""
        update_labelled(self, metrics, output.transpose(1, 2), label)

    def predict(self, output: Tensor) -> Tensor:
        """Return class indices (B, S)."""
        return output.argmax(2)
