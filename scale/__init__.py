"""Past one machine, with Ray, an optional package: nothing else of this project imports it or needs this folder.

serve      the same application in several processes: `RAY_AUTH_MODE=token serve run scale.serve:build replicas=2`
doorway    what stands before them: limits, and a clean refusal where one of them is lost
batch      the same batch on Ray's workers: `python -m scale.batch`
workers    those workers
environment  what the processes of Ray have to know
"""

INSTALL = "Ray is not installed: pip install -c constraints.txt -r requirements-ray.txt"
