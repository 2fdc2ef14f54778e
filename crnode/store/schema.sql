-- One file a set: DATA/sets/<uuid>.db. WAL, synchronous=FULL, one writing connection (the writer thread).
-- Rows are temporal: an entry is valid for born <= ordinal < died. Ordinals are this catalog's own counter (rule 39);
-- epoch, sequence, id and parent are columns of the image. Rows of an image that is still staged are invisible to
-- every smaller ordinal by this very definition, so always ask with an ordinal, never with `died = OPEN`.
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB) STRICT;
CREATE TABLE dir (id INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE) STRICT;      -- interned for ever; b'' is the root
CREATE TABLE principal (id INTEGER PRIMARY KEY, name TEXT NOT NULL, number INTEGER NOT NULL, UNIQUE (name, number)) STRICT;
CREATE TABLE entry (
  dir INTEGER NOT NULL, name BLOB NOT NULL, born INTEGER NOT NULL, died INTEGER NOT NULL,
  kind INTEGER NOT NULL, mode INTEGER NOT NULL, owner INTEGER NOT NULL, grp INTEGER NOT NULL,
  mtime_ns INTEGER NOT NULL, size INTEGER NOT NULL,
  content BLOB, level INTEGER NOT NULL,                       -- 32 bytes and the kind they name: 0 chunk, else recipe level (rule 41)
  link BLOB,                                                  -- hard link group, also part of `extra`
  extra BLOB NOT NULL,                                        -- link target, xattrs, ACLs, link group, fuzzy
  PRIMARY KEY (dir, name, born)) STRICT, WITHOUT ROWID;
CREATE INDEX entry_born ON entry (born);
CREATE INDEX entry_died ON entry (died) WHERE died < 4611686018427387904;
CREATE INDEX entry_link ON entry (link) WHERE link IS NOT NULL;
CREATE TABLE image (
  ordinal INTEGER PRIMARY KEY,
  id BLOB, parent BLOB NOT NULL, incarnation BLOB NOT NULL, epoch INTEGER NOT NULL, sequence INTEGER NOT NULL,
  at_ns INTEGER NOT NULL, received_ns INTEGER NOT NULL, digest BLOB NOT NULL,
  entries INTEGER NOT NULL, bytes INTEGER NOT NULL, flags INTEGER NOT NULL,
  state INTEGER NOT NULL,                                     -- 0 staging, 1 complete
  pinned INTEGER NOT NULL DEFAULT 0, name TEXT, why TEXT, verdict INTEGER NOT NULL DEFAULT 0, evidence TEXT,
  manifest BLOB) STRICT;                                      -- 32 bytes id and its recipe level
CREATE UNIQUE INDEX image_id ON image (id) WHERE state = 1;
CREATE TABLE cursor (target TEXT PRIMARY KEY, image BLOB NOT NULL, ordinal INTEGER NOT NULL, at_ns INTEGER NOT NULL) STRICT;
CREATE TABLE seen (                                           -- fingerprint of the file that an entry was read from or applied to
  dir INTEGER NOT NULL, name BLOB NOT NULL, dev INTEGER NOT NULL, ino INTEGER NOT NULL, size INTEGER NOT NULL,
  mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL, PRIMARY KEY (dir, name)) STRICT, WITHOUT ROWID;
CREATE INDEX seen_ino ON seen (ino);                          -- who else has this inode: hard links, renamed files
CREATE TABLE live (
  one INTEGER PRIMARY KEY CHECK (one = 1), at INTEGER NOT NULL, target INTEGER NOT NULL, synced INTEGER NOT NULL,
  state TEXT NOT NULL, boot TEXT NOT NULL) STRICT;
CREATE TABLE unapplied (path BLOB PRIMARY KEY, reason TEXT NOT NULL) STRICT;
CREATE TABLE lost (path BLOB PRIMARY KEY, reason TEXT NOT NULL, at_ns INTEGER NOT NULL) STRICT;
CREATE TABLE block (                                          -- seeded xxh3 of each 4 KiB of each chunk of a recipe segment; droppable
  segment BLOB PRIMARY KEY, hashes BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE deferred (path BLOB PRIMARY KEY) STRICT;             -- deletions of a rolling image, until the next one confirms them
CREATE TABLE touched (path BLOB PRIMARY KEY) STRICT;              -- may not hold what the image shown has: written whole
