"""Model cards: the README.md of a model or of an adapter on the Hugging Face Hub."""

from im2wav.cards.model_card import (
    CARD,
    HUB_ID,
    adapter_card,
    is_edited,
    network_card,
    read_card,
    updated_card,
    write_card,
)

__all__ = ["CARD", "HUB_ID", "adapter_card", "is_edited", "network_card", "read_card", "updated_card", "write_card"]
