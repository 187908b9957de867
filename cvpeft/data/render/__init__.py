"""Street scenes with manhole covers, rendered from a seed with OpenCV and NumPy: demo data with exact boxes.

In the order in which a picture comes about: cities.py holds what differs between cities; scene.py plans a scene and
paints it; camera.py and ground.py give the road in perspective; surface.py and clutter.py what is painted and lies on
it; covers.py, patterns.py and sprite.py the covers; light.py sun, shadow and water; street.py what stands around;
photo.py lens and sensor. dataset.py writes many scenes as COCO, in processes that share the ground by tiles.py.
noise.py and blend.py serve all of them.
"""

from cvpeft.data.render.cities import CITIES, CLASSES, City, Rig
from cvpeft.data.render.dataset import RENDERER_VERSION, is_rendered, parts_file, render_dataset, renderers
from cvpeft.data.render.scene import Scene, render_scene
from cvpeft.data.render.sprite import PARTS

__all__ = [
    "CITIES", "CLASSES", "PARTS", "RENDERER_VERSION", "City", "Rig", "Scene", "is_rendered", "parts_file",
    "render_dataset", "render_scene", "renderers",
]  # fmt: skip
