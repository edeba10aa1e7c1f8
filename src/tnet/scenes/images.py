"""Names moved to ``decode``, ``find`` and ``guard``; to be removed with their last user."""

from tnet.scenes.decode import DEFAULT_MAX_PIXELS as DEFAULT_MAX_PIXELS
from tnet.scenes.decode import image_size_hw as image_size_hw
from tnet.scenes.decode import load_image as load_image
from tnet.scenes.decode import read_header as read_header
from tnet.scenes.decode import shrunk_size as shrunk_size
from tnet.scenes.find import find_images as find_images
from tnet.scenes.find import image_exists as image_exists
from tnet.scenes.find import is_image_folder as is_image_folder
from tnet.scenes.find import is_image_path as is_image_path
from tnet.scenes.guard import open_file as open_picture
from tnet.scenes.guard import unreadable as unreadable

__all__ = ["open_picture"]
