"""A REAPI client on trio, used by the command line, the tests and the demo.

It speaks to any REAPI v2 server, not only to stoker.
"""

from stoker.client.blobs import Blobs
from stoker.client.execution import Operations
from stoker.client.folder import MerkleTree, digest_file, digest_folder
from stoker.client.log_streams import LogChunks, OutputNames, output_names_of
from stoker.client.outputs import Downloaded, download_outputs
from stoker.client.remote import RemoteInstance, open_remote, parse_target, response_of, stage_of

__all__ = [
    "open_remote",
    "parse_target",
    "RemoteInstance",
    "Blobs",
    "Operations",
    "response_of",
    "stage_of",
    "LogChunks",
    "OutputNames",
    "output_names_of",
    "MerkleTree",
    "digest_file",
    "digest_folder",
    "Downloaded",
    "download_outputs",
]
