"""What was learned on one task is used for another."""

from overhaul.transfer._freeze import Freeze, Unfreeze
from overhaul.transfer._frozen import Frozen
from overhaul.transfer._replace_head import NewOutputLayer, ReplaceHead

__all__ = ["Freeze", "Frozen", "NewOutputLayer", "ReplaceHead", "Unfreeze"]
