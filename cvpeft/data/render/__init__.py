"""Street scenes with manhole covers, rendered from a seed with OpenCV and NumPy: demo data with exact boxes.

scene.py plans and paints one photograph: camera.py and ground.py give the road in perspective, clutter.py what lies on
it, covers.py (with the faces of patterns.py) the covers, light.py sun, shadow and water, street.py what stands around,
photo.py lens and sensor. cities.py holds what differs between cities. dataset.py writes many scenes as COCO.
"""

from cvpeft.data.render.cities import CITIES, CLASSES, City, Rig
from cvpeft.data.render.dataset import RENDERER_VERSION, render_dataset
from cvpeft.data.render.scene import Scene, render_scene

__all__ = ["CITIES", "CLASSES", "RENDERER_VERSION", "City", "Rig", "Scene", "render_dataset", "render_scene"]
