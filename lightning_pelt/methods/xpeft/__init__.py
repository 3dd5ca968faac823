"""X-PEFT: profiles are masks over a frozen bank of adapters."""

from lightning_pelt.methods.xpeft.bank import Bank, BankTensors, RandomBank
from lightning_pelt.methods.xpeft.bank_files import load_bank, save_bank
from lightning_pelt.methods.xpeft.masks import SelectedMasks, profiles_of
from lightning_pelt.methods.xpeft.method import PROFILE, XPEFT
from lightning_pelt.methods.xpeft.trained_bank import TrainedBank

__all__ = [
    "PROFILE",
    "XPEFT",
    "Bank",
    "BankTensors",
    "RandomBank",
    "SelectedMasks",
    "TrainedBank",
    "load_bank",
    "profiles_of",
    "save_bank",
]
