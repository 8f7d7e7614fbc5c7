-- Plans that were offered. state: proposed -> approved | refused; approved <-> refused while the run
-- goes on (a later answer has a higher number). Nothing is trained or sent under a plan that is not
-- approved.
CREATE TABLE plans (
  run_id TEXT PRIMARY KEY,
  plan BLOB NOT NULL,              -- the exact canonical JSON that was offered
  offer BLOB NOT NULL,             -- SignedStatement of the coordinator's PlanOffer
  state TEXT NOT NULL CHECK (state IN ('proposed', 'approved', 'refused')),
  decided_by TEXT NOT NULL DEFAULT '' CHECK (decided_by IN ('', 'person', 'policy')),
  reason TEXT NOT NULL DEFAULT '', -- why it was refused; stays at the site
  number INTEGER NOT NULL DEFAULT 0,  -- answers given so far
  answer BLOB,                     -- SignedStatement of the newest PlanAnswer
  answered INTEGER NOT NULL DEFAULT 0,  -- the coordinator has the newest answer
  offered_ms INTEGER NOT NULL,
  decided_ms INTEGER NOT NULL DEFAULT 0
) STRICT;

-- The chain of manifests of a run, as far as this site has seen it; rows are only added.
CREATE TABLE manifests (
  run_id TEXT NOT NULL REFERENCES plans (run_id),
  seq INTEGER NOT NULL,
  round INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  hash BLOB NOT NULL,              -- of the statement
  signed BLOB NOT NULL,            -- SignedStatement of a RoundManifest
  PRIMARY KEY (run_id, seq)
) STRICT;

-- What the cohort signed about an attempt, this site's own countersignature included.
CREATE TABLE countersignatures (
  run_id TEXT NOT NULL,
  round INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  site TEXT NOT NULL,
  signed BLOB NOT NULL,            -- SignedStatement of a Countersignature
  PRIMARY KEY (run_id, round, attempt, site)
) STRICT;

-- Signed statements that contradict a manifest accepted here, or the first offer of a run: evidence, kept.
-- After the former the run goes no further under the answer to its plan that was in force then.
CREATE TABLE forks (
  seq INTEGER PRIMARY KEY,         -- of the log entry
  run_id TEXT NOT NULL REFERENCES plans (run_id),
  answer INTEGER NOT NULL,         -- plans.number when it was seen; -1 for offers, which hold nothing up
  held BLOB,                       -- SignedStatement of the manifest or offer accepted before, if any
  other BLOB NOT NULL              -- SignedStatement of the manifest, countersignature or offer against it
) STRICT;

-- Checkpoints of logs, in the order in which they were made or came: this site's own, each as it was given, and
-- those of others, each shown to go on from the one before it of the same log. Rows are only added.
CREATE TABLE checkpoints (
  seq INTEGER PRIMARY KEY,
  site TEXT NOT NULL,              -- whose log
  key_id TEXT NOT NULL,            -- under which signing key, hex: another key has another log
  size INTEGER NOT NULL,           -- entries
  run_id TEXT NOT NULL,            -- what it was given for; perhaps a run that this site knows nothing of
  round INTEGER NOT NULL,          -- 0: it closes the run
  attempt INTEGER NOT NULL,        -- 0: it closes the run
  hash BLOB NOT NULL UNIQUE,       -- of the statement; manifests name it
  proof BLOB NOT NULL,             -- consistency with the one before it: 32-byte hashes
  signed BLOB NOT NULL             -- SignedStatement of a fedpalm.ledger.checkpoint.Checkpoint
) STRICT;
CREATE INDEX checkpoints_by_site ON checkpoints (site, seq);

-- Two checkpoints that cannot both be of one log: evidence, kept.
CREATE TABLE checkpoint_conflicts (
  seq INTEGER PRIMARY KEY,         -- of the log entry
  held BLOB NOT NULL,              -- SignedStatement of the one in table checkpoints
  other BLOB NOT NULL              -- SignedStatement of the one that was refused
) STRICT;

-- Masked attempts that this site began. Their secrets lie in a file of their own (masking/), which belongs in
-- no backup; the row says how far the attempt came, so that no secret is used twice. state: keyed -> shared ->
-- masked -> agreed -> revealed, or shared -> complained; dead from any of them. Rows stay: they are the
-- memory of what was given.
CREATE TABLE masked_attempts (
  run_id TEXT NOT NULL REFERENCES plans (run_id),
  round INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  stage TEXT NOT NULL CHECK (stage IN (
    'keyed', 'shared', 'masked', 'complained', 'agreed', 'revealed', 'dead')
  ),
  gave_shares INTEGER NOT NULL DEFAULT 0,  -- it came as far as revealed, whatever it is now
  model_hash BLOB NOT NULL,        -- the global model that the contribution was trained from
  encoded_hash BLOB NOT NULL,      -- SHA-256 of the encoded update that is masked
  state_hash BLOB,                 -- SHA-256 of the file with the attempt's state; NULL once it is dead
  masked_hash BLOB,                -- SHA-256 of the masked vector, once there is one
  masked_file TEXT,                -- in the state folder, until the attempt is over
  PRIMARY KEY (run_id, round, attempt)
) STRICT;

-- Which masking/memory.json is this database's: the one that names this mark, made together with it. No other
-- one is believed, and without it nothing is masked: then the database, or both, came from a backup.
CREATE TABLE masking_mark (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  mark TEXT NOT NULL               -- 32 hex digits, random
) STRICT;

-- The long-term signing key of each other site, as it first countersigned a manifest with it here, or as a
-- person accepted it since.
CREATE TABLE peers (
  site TEXT PRIMARY KEY,
  key BLOB NOT NULL,               -- Ed25519, 32 bytes
  since_ms INTEGER NOT NULL,
  confirmed_ms INTEGER,            -- when a person here said that they had compared it; NULL before
  other_key BLOB                   -- another key that came later and was refused
) STRICT;

-- A run that this site takes part in. state: joined -> completed | aborted | left.
CREATE TABLE runs (
  run_id TEXT PRIMARY KEY,
  plan BLOB NOT NULL,              -- the exact canonical JSON that was agreed
  state TEXT NOT NULL CHECK (state IN ('joined', 'completed', 'aborted', 'left')),
  model_hash BLOB,                 -- the final global model, once the run has ended
  reason TEXT NOT NULL DEFAULT '',
  joined_ms INTEGER NOT NULL
) STRICT;

-- Global models that were downloaded, so that evaluation can find them by round.
CREATE TABLE models (
  run_id TEXT NOT NULL REFERENCES runs (run_id),
  round INTEGER NOT NULL,
  model_hash BLOB NOT NULL,
  PRIMARY KEY (run_id, round)
) STRICT;

-- The private state of a run after a round; one row a run, replaced as the run goes on.
CREATE TABLE states (
  run_id TEXT PRIMARY KEY REFERENCES runs (run_id),
  round INTEGER NOT NULL,
  file TEXT NOT NULL UNIQUE,       -- sealed by the vault
  file_hash BLOB NOT NULL          -- SHA-256 of the sealed bytes
) STRICT;

-- Small records, sealed by the vault (vault_items.py). A name is inside the record, and here only as its HMAC.
CREATE TABLE vault_items (
  kind TEXT NOT NULL,
  key BLOB NOT NULL,               -- HMAC-SHA256 of the name
  version INTEGER NOT NULL,        -- which change of the set wrote it
  sealed BLOB NOT NULL,            -- name and data; kind, key and version are associated data
  PRIMARY KEY (kind, key)
) STRICT;

-- The root over all of them: how many there are and their set hash, sealed. vault.mark names its hash.
CREATE TABLE vault_root (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  sealed BLOB NOT NULL
) STRICT;

-- What was trained in a round, as it is sent. Older files go; the row stays, so that no round is
-- ever trained twice.
CREATE TABLE updates (
  run_id TEXT NOT NULL REFERENCES runs (run_id),
  round INTEGER NOT NULL,
  model_hash BLOB NOT NULL,        -- the global model that it was trained from
  payload_hash BLOB NOT NULL,
  payload_bytes INTEGER NOT NULL,
  layout_hash BLOB NOT NULL,
  file TEXT,
  metrics TEXT NOT NULL,           -- JSON object of numbers: how the training went; stays at the site
  PRIMARY KEY (run_id, round)
) STRICT;

-- What was charged for rounds with differential privacy, before they were trained, and how far each came. state:
-- reserved -> begun -> committed | aborted. begun is where a training was cut off: its round is charged again.
-- The account is the log, not this table.
CREATE TABLE reservations (
  seq INTEGER PRIMARY KEY,         -- of the log entry budget_reserved
  run_id TEXT NOT NULL,
  round INTEGER NOT NULL,          -- of the run
  state TEXT NOT NULL CHECK (state IN ('reserved', 'begun', 'committed', 'aborted')),
  update_hash BLOB                 -- of the encoded update that it paid for, once committed
) STRICT;
CREATE INDEX reservations_by_round ON reservations (run_id, round);

-- Each permission to send, made in the transaction of its log entry.
CREATE TABLE releases (
  seq INTEGER PRIMARY KEY,         -- of the log entry
  payload TEXT NOT NULL,
  place TEXT NOT NULL,             -- run/round/attempt, run/exchange, run, or empty
  recipient TEXT NOT NULL,
  payload_hash BLOB NOT NULL,
  payload_bytes INTEGER NOT NULL,
  released_ms INTEGER NOT NULL,    -- for the policy's ceiling of bytes a day
  receipt_seq INTEGER,
  receipt BLOB                     -- SignedStatement of the coordinator's PayloadReceipt
) STRICT;
CREATE INDEX releases_by_place ON releases (place, payload);
CREATE INDEX releases_by_time ON releases (released_ms, payload_bytes);

-- Exchanges; machine is fedpalm.exchange.site.SiteExchange as JSON, state a copy of its state.
CREATE TABLE exchanges (
  exchange_id TEXT PRIMARY KEY,
  run_id TEXT NOT NULL REFERENCES runs (run_id),
  machine TEXT NOT NULL,
  state TEXT NOT NULL,
  proposal BLOB NOT NULL,          -- SignedStatement of the coordinator's ExchangeTerms
  consent BLOB,                    -- SignedStatement of this site's own Consent
  agreed TEXT,                     -- JSON array of the consents under which it sealed
  wrapped TEXT,                    -- JSON: the wrapped key of its expert by recipient, until it is over
  key_file TEXT,                   -- recipient key and salt, sealed by the vault, until the experts are opened
  answered INTEGER NOT NULL DEFAULT 0,  -- the coordinator has this site's present answer
  closed INTEGER NOT NULL DEFAULT 0,    -- the coordinator has said that it is over
  proposed_ms INTEGER NOT NULL
) STRICT;

-- Sealed experts: this site's own, sealed once since sealing is randomised, and those of the other signers,
-- verified. The files go when the exchange is over.
CREATE TABLE sealed_experts (
  exchange_id TEXT NOT NULL REFERENCES exchanges (exchange_id),
  sender TEXT NOT NULL,
  payload_hash BLOB NOT NULL,
  payload_bytes INTEGER NOT NULL,
  file TEXT,
  PRIMARY KEY (exchange_id, sender)
) STRICT;

-- Every attempt to verify or identify somebody that was let in, newest last; no score is kept. Rows older than
-- keep_attempts_days go. outcome: open -> match | non_match | not_acquired | failed; an attempt that was cut off
-- stays open, and counts as failed.
CREATE TABLE verification_attempts (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  at_ms INTEGER NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN ('verify', 'identify')),
  subject BLOB,                    -- HMAC of the name that was claimed; NULL: none was
  caller TEXT NOT NULL,            -- the application; empty: this machine's command line or Python
  outcome TEXT NOT NULL CHECK (outcome IN ('open', 'match', 'non_match', 'not_acquired', 'failed')),
  excused INTEGER NOT NULL DEFAULT 0  -- 1: the subject was unlocked since; not counted in their own rate
) STRICT;
CREATE INDEX verification_attempts_by_time ON verification_attempts (at_ms);

-- Who has failed since the last match, and until when nothing is tried for them.
CREATE TABLE verification_locks (
  subject BLOB PRIMARY KEY,        -- as above
  failures INTEGER NOT NULL,
  locked_until_ms INTEGER NOT NULL
) STRICT;

-- How often what has happened, over all people and times.
CREATE TABLE verification_counts (
  what TEXT PRIMARY KEY,
  n INTEGER NOT NULL
) STRICT;

-- Certificates that the site's own CA has issued to its applications; rows stay.
CREATE TABLE applications (
  serial TEXT PRIMARY KEY,         -- hex
  name TEXT NOT NULL,
  fingerprint TEXT NOT NULL,
  issued_ms INTEGER NOT NULL,
  expires_ms INTEGER NOT NULL,
  revoked_ms INTEGER
) STRICT;

-- The hash-chained log. Rows are added at the end and never touched again.
CREATE TABLE log (
  seq INTEGER PRIMARY KEY,
  entry BLOB NOT NULL
) STRICT;
CREATE TRIGGER log_is_not_updated BEFORE UPDATE ON log
  BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER log_is_not_deleted BEFORE DELETE ON log
  BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER log_grows_at_the_end BEFORE INSERT ON log
  WHEN NEW.seq != (SELECT COALESCE(MAX(seq), -1) + 1 FROM log)
  BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
