# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""From class names to text embeddings: learnable prompts and a frozen CLIP text encoder, or stored embeddings.

Text embeddings are encoded whenever a model is called, because nothing tells when they are out of date: weights change
behind PyTorch's back (through `.data`), and adapters are switched. Who calls a model many times with the same weights
encodes them once, with [`MTAClipForSemanticSegmentation.encode_class_names`] or `for_inference`.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import CLIPTextModelWithProjection

from .configuration_mtaclip import MTAClipConfig


# Added to the attention logits of pairs that must not attend: exp() of it is 0, and every dtype can hold it.
MASKED = torch.finfo(torch.float16).min
# Class names are encoded in groups of about this many tokens: attention inside a group grows with its square.
TOKENS_PER_GROUP = 128
NO_TRAINING = (
    "This model was saved for inference: its text embeddings are constants, prompts and text encoder are left out, so "
    "that it can't be trained. Train the model that it was saved from; for inference call `model.eval()`."
)


class MTAClipTextModel(nn.Module):
    """Learnable prompt contexts and the class names, encoded by a frozen CLIP text encoder (Sec. 3.3).

    A prompt is start token, context, name, end token. The text encoder is causal, so that all names under a context
    see the same states of start token and context: names are packed behind them into one sequence, and the attention
    mask keeps each name to the context and itself. Only the tokens of the names are encoded, and no padding but the
    rest of each group.
    """

    def __init__(self, config: MTAClipConfig) -> None:
        super().__init__()
        if config.class_token_ids is None:
            raise ValueError(
                "The config has no `class_token_ids`: the text encoder has no class names to read. Make it with "
                "`MTAClipConfig.from_labels(names, tokenizer, ...)`, or set `text_branch=False` to do without text."
            )
        self.config = config
        self.contexts = nn.Parameter(
            torch.empty(config.num_prompt_contexts, config.prompt_length, config.text_config.hidden_size)
        )
        for name, value in self.packed_names().items():
            setattr(self, name, nn.Buffer(value, persistent=False))
        self.text_encoder = CLIPTextModelWithProjection._from_config(config.text_config)
        self.freeze()

    def packed_names(self) -> dict[str, Tensor]:
        """The class names as `_pack` gives them."""
        return self._pack([self.config.class_token_ids[name] for name in self.config.class_names_with_no_object()])

    def _pack(self, token_ids: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Int64: `token_ids`, `positions` in the prompt and `segments` (which name, -1 for padding), all of shape
        `(groups, tokens)`, and `ends` `(names,)`, where in the flattened groups each name ends."""
        config = self.config
        names = [[*ids, config.prompt_end_token_id] for ids in token_ids]
        groups: list[list[int]] = [[]]
        for index, name in enumerate(names):
            if groups[-1] and sum(len(names[other]) for other in groups[-1]) + len(name) > TOKENS_PER_GROUP:
                groups.append([])
            groups[-1].append(index)

        def lay_out(tokens_of: Callable[[int], Tensor], padding: int) -> Tensor:
            rows = [torch.cat([tokens_of(index) for index in group]) for group in groups]
            return pad_sequence(rows, batch_first=True, padding_value=padding)

        first = 1 + config.prompt_length
        packed = {
            "token_ids": lay_out(lambda index: torch.tensor(names[index]), config.prompt_end_token_id),
            "positions": lay_out(lambda index: first + torch.arange(len(names[index])), 0),
            "segments": lay_out(lambda index: torch.full((len(names[index]),), index), -1),
        }
        length = packed["segments"].shape[1]
        ends = [
            row * length + end - 1
            for row, group in enumerate(groups)
            for end in accumulate(len(names[index]) for index in group)
        ]
        return packed | {"ends": torch.tensor(ends)}

    def forward(self) -> Tensor:
        """CLIP embeddings of the class names and "no object", `(C, K + 1, E)`."""
        return self._encode(self.token_ids, self.positions, self.segments, self.ends)

    @torch.no_grad()
    def encode_token_ids(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """CLIP embeddings `(C, P, E)` of other names or phrases: the tokens of each of `P`, without start and end."""
        packed = {name: value.to(self.contexts.device) for name, value in self._pack(token_ids).items()}
        return self._encode(**packed)

    def _encode(self, token_ids: Tensor, positions: Tensor, segments: Tensor, ends: Tensor) -> Tensor:
        text_model = self.text_encoder.text_model
        tokens, places = text_model.embeddings.token_embedding, text_model.embeddings.position_embedding
        num_contexts, num_groups = len(self.contexts), len(token_ids)
        start = tokens.weight[self.config.prompt_start_token_id].expand(num_contexts, 1, -1)
        prefixes = torch.cat((start, self.contexts.to(start.dtype)), dim=1)
        prefixes = prefixes + places.weight[: prefixes.shape[1]]
        names = tokens(token_ids) + places(positions)
        prompts = (prefixes[:, None].expand(-1, num_groups, -1, -1), names.expand(num_contexts, -1, -1, -1))
        hidden_states = torch.cat(prompts, dim=2).flatten(0, 1)
        attention_mask = _prompt_mask(segments, prefixes.shape[1], hidden_states.dtype).repeat(num_contexts, 1, 1, 1)
        encoded = text_model.encoder(inputs_embeds=hidden_states, attention_mask=attention_mask).last_hidden_state
        encoded = encoded[:, prefixes.shape[1] :].unflatten(0, (num_contexts, num_groups)).flatten(1, 2)
        return self.text_encoder.text_projection(text_model.final_layer_norm(encoded.index_select(1, ends)))

    def freeze(self) -> None:
        """Takes the text encoder out of training; only the prompt contexts learn on the text side (Sec. 3.3)."""
        self.text_encoder.requires_grad_(False)
        self.text_encoder.eval()

    def train(self, mode: bool = True) -> "MTAClipTextModel":
        """Sets training or evaluation mode; the frozen text encoder stays in evaluation mode."""
        super().train(mode)
        self.text_encoder.eval()
        return self


def _prompt_mask(segments: Tensor, prefix_length: int, dtype: torch.dtype) -> Tensor:
    """Additive `(groups, 1, S, S)`: what comes earlier, in the context or in the same name."""
    segments = nn.functional.pad(segments, (prefix_length, 0), value=-2)
    allowed = (segments[:, :, None] == segments[:, None, :]) | (segments[:, None, :] == -2)
    return (~allowed.tril())[:, None].to(dtype) * MASKED


class MTAClipStoredTexts(nn.Module):
    """The text embeddings of a model that was saved for inference, in place of prompts and text encoder."""

    def __init__(self, config: MTAClipConfig) -> None:
        super().__init__()
        shape = (config.num_prompt_contexts, config.num_labels + 1, config.text_config.projection_dim)
        self.text_embeddings = nn.Buffer(torch.empty(shape))

    def forward(self) -> Tensor:
        """CLIP embeddings of the class names and "no object", `(C, K + 1, E)`; refused in training mode."""
        if self.training:
            raise ValueError(NO_TRAINING)
        return self.text_embeddings


__all__ = ["MTAClipStoredTexts", "MTAClipTextModel"]
