"""What every module that talks to Cloudflare is told."""

from __future__ import annotations


class ModuleDocFragment:
    """Ansible's way to find the text; module_utils/cloudflare_api.py has the options themselves."""

    DOCUMENTATION = r"""
options:
  api_token:
    description: Token of the API; docs/cloudflare.md lists its permissions.
    type: str
    required: true
  api_url:
    description: Address of the API.
    type: str
    default: https://api.cloudflare.com/client/v4
  zone:
    description: The zone's own name.
    type: str
    required: true
"""
