"""Commands that install what Papertape can use and does not need, as errors and hints print them."""

GYMNASIUM = 'pip install "gymnasium>=1.0"'
TRITON = "pip install triton"
VISDOM = 'pip install "setuptools<81" wheel && pip install --no-build-isolation visdom==0.2.4 "tornado<6.6"'
"""visdom's setup.py imports pkg_resources, which newer setuptools lack and pip would fetch for the build; its server
answers every page with 403 under tornado 6.6."""
SUBMITIT = 'pip install "submitit>=1.5", which is the extra cluster: pip install -e ".[cluster]" in a clone'
