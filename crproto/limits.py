"""Every bound of the protocol, with its unit and its reason. Nothing is accepted without one."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB

# --- versions -------------------------------------------------------------------------------------

PROTOCOL_VERSION = 1  # the one version this package speaks
FORMAT_LEVEL = 1  # encodings of entries, recipes, digests and ids as written here; raised only by a person
DIGEST_SCHEME = 1  # LtHash16 over keyed BLAKE3, see entries.py

# --- frames ---------------------------------------------------------------------------------------

FRAME = 4 * MIB  # bytes after the length word; usual frames have 256 KiB to 1 MiB, one object must always fit
MESSAGE = 1 * MIB  # bytes of the msgpack part; 8,192 entries of 128 bytes
BEFORE_AUTH = 64 * KIB  # bytes of a frame before we know who speaks: a certificate request and a document fit
FRAMES_BEFORE_AUTH = (
    8  # hello, ca request, join request and a few repeats; then the stranger has to dial again
)
STAGING_SMALL = 64 * KIB  # bytes of a receive buffer while frames are small
STAGING_LARGE = 256 * KIB  # bytes of a receive buffer while frames are large
RETIRED = 4 * MIB  # bytes of used receive buffers that a connection keeps while large frames come
BUFFER_GROWTH = (
    4  # a buffer grows at most by this factor of what was received: announcing 4 MiB costs us nothing
)

# --- names and text -------------------------------------------------------------------------------

NAME = 63  # characters of a node or set name: a DNS label
PATH = 4096  # bytes: Linux PATH_MAX
COMPONENT = 255  # bytes: NAME_MAX of every common file system
DEPTH = 128  # components of a path: bounds recursion of those who build trees from it
TEXT = 4096  # bytes of a sentence for people
OWNER = 255  # characters of a user or group name
ADDRESS = 255  # characters of host:port
FEATURES = 64  # optional abilities in one hello
FEATURE = 64  # characters of the name of one of them
FAILURE_CODES = (
    "protocol",  # the bytes break this protocol
    "limit",  # one of the bounds here
    "version",  # no common version
    "cluster",  # another cluster
    "denied",  # known, but not allowed
    "unknown",  # not known: node, set, image
    "busy",  # come back later
    "shutdown",  # this side stops
    "internal",  # a defect on the sender's side
)

# --- entries --------------------------------------------------------------------------------------

ENTRIES_PER_FRAME = 8192  # also of removed paths
EXTRA = 256 * KIB  # bytes of an entry's extra map: Linux allows 64 KiB of attributes on most file systems
XATTRS = 256  # extended attributes of one entry
XATTR_NAME = 255  # bytes: Linux XATTR_NAME_MAX
XATTR_VALUE = 64 * KIB  # bytes: Linux XATTR_SIZE_MAX
ACL_ENTRIES = 1024  # of one access control list; ext4 holds about 500
LINK = 10  # bytes of a hard link group's id
SIZE = 2**63 - 1  # bytes of a file: off_t

# --- content --------------------------------------------------------------------------------------

ID = 32  # bytes of every content and image id
RAW_OBJECT = 8 * MIB  # bytes of one chunk or recipe once decoded; our cutters stop at 256 KiB
PATCH_PARTS = 4096  # ranges of one patch
RECIPE_ITEMS = 4096  # items of one recipe object; ours has at most SEGMENT_MAX
RECIPE_DEPTH = 16  # levels; 16 items a level and 4 KiB a chunk would reach 2**76 bytes
SEGMENT_MIN = (
    16  # items before a content-defined border may close a segment: at least a 16-fold narrowing a level
)
SEGMENT_MAX = 1024  # items at which a segment is closed in any case: 41 KB
ZSTD_WINDOW = 8 * MIB  # bytes a decompressor may hold; RAW_OBJECT needs no more

# --- sessions -------------------------------------------------------------------------------------

IDS_PER_FRAME = 8192  # in Offer, Missing, Fetch, FetchDone
OBJECTS_PER_FRAME = 8192
RANGES = 4096  # borders of one Compare
LISTED = 8192  # items of one Listed
IMAGES = 4096  # of one Images answer: 64 versions, pins and some history
QUESTIONS = 64  # unanswered questions of one side at a time
BODY = (
    1 * MIB - 1 * KIB
)  # bytes of a JSON body inside a message; a document of 8 nodes and 500 sets has 300 KB
CERTIFICATE = 32 * KIB  # bytes of a certificate or a request for one
CREDIT = 1 << 30  # bytes: the largest window one side may grant

U32 = 2**32 - 1
U64 = 2**64 - 1
I64_MIN = -(2**63)
I64_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds a Connection can be given; the others are constants of the format."""

    frame: int = FRAME
    message: int = MESSAGE
    before_auth: int = BEFORE_AUTH
    frames_before_auth: int = FRAMES_BEFORE_AUTH
    questions: int = QUESTIONS

    @property
    def min_credit(self) -> int:
        """The smallest window, in bytes, with which the largest frame always gets through.

        Credit comes back in steps of a quarter of the window, so up to a quarter may be missing for ever.
        """
        return (self.frame + 4) * 3 // 2


DEFAULT = Limits()
