"""Methods ``receptive-field`` and ``kernel``: layers that see nothing new are moved or made cheaper."""

from convwright.methods.receptive_field import kernel_optimizer  # noqa: F401 - registers its methods
from convwright.methods.receptive_field.organizer import Organization, ReceptiveFieldOrganizer, check_counted, organize

__all__ = ["Organization", "ReceptiveFieldOrganizer", "check_counted", "organize"]
