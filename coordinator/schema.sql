-- The coordinator's store. Hashes are SHA-256 in lower-case hex, times are Unix milliseconds.
-- There is nothing here that a site keeps to itself: no image, no template, no head, no key. Model
-- and update vectors lie in files (models/, spool/); a row says that a file is complete and durable.

CREATE TABLE sites (
    site             TEXT PRIMARY KEY,           -- name, as in its certificate
    state            TEXT NOT NULL CHECK (state IN ('active', 'revoked')), -- a revoked one may not call
    signing_key      BLOB NOT NULL,              -- raw Ed25519 public key, 32 bytes; another one needs a new admission
    admitted_ms      INTEGER NOT NULL,           -- when the operator admitted it last
    revoked_ms       INTEGER NOT NULL DEFAULT 0, -- when the operator revoked it; 0: never since its admission
    reason           TEXT NOT NULL DEFAULT '',   -- the operator's word about that
    last_seen_ms     INTEGER NOT NULL DEFAULT 0, -- last time a connection began or ended; 0: never
    software_version TEXT NOT NULL DEFAULT '',   -- what it said in its last Hello
    breaks           INTEGER NOT NULL DEFAULT 0, -- how often its past has ended: revocations, admissions that replace what it was
    breaks_carried   INTEGER NOT NULL DEFAULT 0  -- how many of these the runs and exchanges have stored; fewer: it may not call yet
) STRICT;

-- Every leaf that the CA of this home has issued, in that order. Whoever calls must show one that is not
-- over. A renewal ends nothing by itself, since its reply may be lost: the first call with the new
-- certificate gives those before it an end, after an overlap.
CREATE TABLE certificates (
    fingerprint   TEXT PRIMARY KEY,              -- SHA-256 of the DER bytes, as it is read aloud
    role          TEXT NOT NULL,                 -- as in the certificate
    name          TEXT NOT NULL,                 -- as in the certificate
    serial        TEXT NOT NULL,                 -- hex
    issued_ms     INTEGER NOT NULL,              -- when it was issued
    expires_ms    INTEGER NOT NULL,              -- its notAfter
    used_ms       INTEGER NOT NULL DEFAULT 0,    -- first call with it; 0: none yet
    over_ms       INTEGER NOT NULL DEFAULT 0,    -- from when it is not accepted any more; 0: until it expires
    why_over      TEXT NOT NULL DEFAULT ''       -- renewed | replaced | retired | revoked
) STRICT;

-- One-time invitations. state: open -> claimed -> issued | rejected; open, claimed -> cancelled; past
-- expires_ms an open or claimed one is over, too. A decision can be asked for until a day after it.
CREATE TABLE invitations (
    invitation_id TEXT PRIMARY KEY,              -- 16 random bytes, hex; not secret
    site          TEXT NOT NULL,                 -- the only name that it can be used for
    token_hash    BLOB NOT NULL,                 -- SHA-256 of the 32-byte token, which is not stored
    state         TEXT NOT NULL CHECK (state IN ('open', 'claimed', 'issued', 'rejected', 'cancelled')), -- see above
    created_ms    INTEGER NOT NULL,              -- when the operator made it
    expires_ms    INTEGER NOT NULL,              -- until when it can be claimed and approved
    request       BLOB,                          -- PEM request that claimed it
    claimed_ms    INTEGER NOT NULL DEFAULT 0,    -- when that request came first; 0: not yet
    chain         BLOB,                          -- PEM of what was issued: leaf, then issuing CA
    reason        TEXT NOT NULL DEFAULT '',      -- the operator's word, if rejected
    decided_ms    INTEGER NOT NULL DEFAULT 0,    -- when the operator approved or rejected
    told_ms       INTEGER NOT NULL DEFAULT 0     -- first time that the decision was handed out; 0: not yet
) STRICT;

CREATE TABLE runs (
    run_id     TEXT PRIMARY KEY,                 -- plan name and 32 random bits
    plan       BLOB NOT NULL,                    -- canonical JSON, the bytes that are hashed; never changes
    state      TEXT NOT NULL,                    -- JSON of fedpalm.rounds.run.Run: the truth about run and current attempt
    created_ms INTEGER NOT NULL                  -- when the operator submitted the plan; the order of runs
) STRICT;

-- One row an attempt, written in the same transaction as runs.state. The program shows the current
-- attempt out of runs.state; this is the history, which an operator reads with
--   sqlite3 -readonly store.sqlite3 "SELECT round, attempt, cohort, survivors, reason FROM attempts WHERE run_id = '...'"
CREATE TABLE attempts (
    run_id     TEXT NOT NULL REFERENCES runs,    -- table runs
    round      INTEGER NOT NULL,                 -- from 1
    attempt    INTEGER NOT NULL,                 -- from 1 in each round
    opened_ms  INTEGER NOT NULL,                 -- when it began to wait for sites
    cohort     TEXT NOT NULL DEFAULT '[]',       -- JSON list of sites; empty until sealed
    survivors  TEXT NOT NULL DEFAULT '[]',       -- JSON list of those whose updates were summed; others of the cohort dropped out
    masking_step TEXT NOT NULL DEFAULT '',       -- the step that masking came to: fedpalm.secagg.unmasking.Step; empty: keys, or not masked
    closed_ms  INTEGER NOT NULL DEFAULT 0,       -- 0: not over
    model_hash TEXT NOT NULL DEFAULT '',         -- committed model; empty if aborted or not over
    reason     TEXT NOT NULL DEFAULT '',         -- why it was aborted; with a committed model: why it gave no sum
    PRIMARY KEY (run_id, round, attempt)
) STRICT;

-- A row here is what a receipt says: the whole update is valid and on disk.
CREATE TABLE updates (
    run_id        TEXT NOT NULL REFERENCES runs, -- table runs
    round         INTEGER NOT NULL,              -- as in table attempts
    attempt       INTEGER NOT NULL,              -- as in table attempts
    site          TEXT NOT NULL,                 -- whose it is
    payload_hash  TEXT NOT NULL,                 -- of the encoded update
    payload_bytes INTEGER NOT NULL,              -- length
    received_ms   INTEGER NOT NULL,              -- told again, unchanged, with every copy of the receipt
    PRIMARY KEY (run_id, round, attempt, site)
) STRICT;

CREATE TABLE models (
    run_id       TEXT NOT NULL REFERENCES runs,  -- table runs
    round        INTEGER NOT NULL,               -- round that committed it; 0: the initial model
    model_hash   TEXT NOT NULL,                  -- file models/<hash>.f32, unless deleted by keep_models
    PRIMARY KEY (run_id, round)
) STRICT;

-- A site's newest answer to a plan; an earlier one (a lower number) never replaces it.
CREATE TABLE plan_answers (
    run_id   TEXT NOT NULL REFERENCES runs,      -- table runs
    site     TEXT NOT NULL,                      -- whose it is
    number   INTEGER NOT NULL,                   -- as in the statement
    answer   TEXT NOT NULL CHECK (answer IN ('approve', 'refuse')), -- as in the statement
    signed   BLOB NOT NULL,                      -- fedpalm.pki.statement.SignedStatement of a PlanAnswer
    PRIMARY KEY (run_id, site)
) STRICT;

-- The coordinator's signed offers, one a run.
CREATE TABLE plan_offers (
    run_id TEXT PRIMARY KEY REFERENCES runs,     -- table runs
    signed BLOB NOT NULL                         -- SignedStatement of a PlanOffer
) STRICT;

-- The chain of a run's manifests, one for each cohort that was sealed; written with the cohort.
CREATE TABLE manifests (
    run_id  TEXT NOT NULL REFERENCES runs,       -- table runs
    seq     INTEGER NOT NULL,                    -- position in the chain, from 0
    round   INTEGER NOT NULL,                    -- as in table attempts
    attempt INTEGER NOT NULL,                    -- as in table attempts
    signed  BLOB NOT NULL,                       -- SignedStatement of a RoundManifest
    PRIMARY KEY (run_id, seq),
    UNIQUE (run_id, round, attempt)
) STRICT;

CREATE TABLE countersignatures (
    run_id  TEXT NOT NULL REFERENCES runs,       -- table runs
    round   INTEGER NOT NULL,                    -- as in table attempts
    attempt INTEGER NOT NULL,                    -- as in table attempts
    site    TEXT NOT NULL,                       -- whose it is
    signed  BLOB NOT NULL,                       -- SignedStatement of a Countersignature
    PRIMARY KEY (run_id, round, attempt, site)
) STRICT;

-- Checkpoints of sites' logs, in the order in which they came; each was verified to go on from the one of the
-- same log before it. Written with the step of the run that it belongs to.
CREATE TABLE checkpoints (
    seq     INTEGER PRIMARY KEY,                 -- order
    site    TEXT NOT NULL,                       -- whose log
    key_id  TEXT NOT NULL,                       -- under which signing key: another key has another log
    size    INTEGER NOT NULL,                    -- entries
    run_id  TEXT NOT NULL,                       -- what it was given for; after a restore perhaps no run of table runs
    round   INTEGER NOT NULL,                    -- as in table attempts; 0: it closes the run
    attempt INTEGER NOT NULL,                    -- as in table attempts; 0: it closes the run
    hash    TEXT NOT NULL UNIQUE,                -- of the statement; manifests name it
    proof   BLOB NOT NULL,                       -- consistency with the one before it: 32-byte hashes
    signed  BLOB NOT NULL,                       -- SignedStatement of a fedpalm.ledger.checkpoint.Checkpoint
    UNIQUE (run_id, round, attempt, site, key_id)
) STRICT;
CREATE INDEX checkpoints_by_site ON checkpoints (site, seq);

-- Checkpoints that were refused, since they do not go on from the newest one: evidence.
CREATE TABLE checkpoint_conflicts (
    site    TEXT NOT NULL,                       -- whose log
    held    TEXT NOT NULL,                       -- hash of the one in table checkpoints
    other   TEXT NOT NULL,                       -- hash of the refused one
    signed  BLOB NOT NULL,                       -- SignedStatement of the refused one
    came_ms INTEGER NOT NULL,                    -- when it came first
    PRIMARY KEY (held, other)
) STRICT;

-- What sites said in the steps of a masked attempt: serialised MaskingMessage. Public keys, ciphertexts,
-- hashes and signatures; the coordinator has no key to any box. Shares of opened secrets come last, and
-- the rows of an attempt are deleted when it is over.
CREATE TABLE masking_messages (
    run_id    TEXT NOT NULL REFERENCES runs,     -- table runs
    round     INTEGER NOT NULL,                  -- as in table attempts
    attempt   INTEGER NOT NULL,                  -- as in table attempts
    step      TEXT NOT NULL,                     -- fedpalm.secagg.unmasking.Step
    site      TEXT NOT NULL,                     -- who said it
    recipient TEXT NOT NULL DEFAULT '',          -- of a box
    message   BLOB NOT NULL,                     -- as it came
    PRIMARY KEY (run_id, round, attempt, step, site, recipient)
) STRICT;

-- The step that a masked attempt has come to, and until when it waits.
CREATE TABLE masking_steps (
    run_id      TEXT NOT NULL REFERENCES runs,   -- table runs
    round       INTEGER NOT NULL,                -- as in table attempts
    attempt     INTEGER NOT NULL,                -- as in table attempts
    step        TEXT NOT NULL,                   -- fedpalm.secagg.unmasking.Step
    deadline_ms INTEGER NOT NULL,                -- when it goes on without those who are waited for
    PRIMARY KEY (run_id, round, attempt)
) STRICT;

-- Global models for which sites have been asked for shares. Sites give shares for a model once, so no masked
-- round may start from one again; written with the step that asks.
CREATE TABLE spent_models (
    model_hash TEXT PRIMARY KEY,                 -- as in table models
    run_id     TEXT NOT NULL REFERENCES runs,    -- the run that asked first
    round      INTEGER NOT NULL                  -- and its round
) STRICT;

-- Every receipt as it was given; the same bytes are given again to whoever asks again.
CREATE TABLE receipts (
    run_id       TEXT NOT NULL REFERENCES runs,  -- table runs
    site         TEXT NOT NULL,                  -- whose payload it is
    place        TEXT NOT NULL,                  -- run/round/attempt or run/exchange
    signed       BLOB NOT NULL,                  -- SignedStatement of a PayloadReceipt
    PRIMARY KEY (run_id, site, place)
) STRICT;

CREATE TABLE exchanges (
    exchange_id TEXT PRIMARY KEY,                -- chosen with the proposal
    run_id      TEXT NOT NULL REFERENCES runs,   -- table runs
    plan_hash   TEXT NOT NULL,                   -- of the run's plan, which releases its experts once
    number      INTEGER NOT NULL,                -- of this plan's exchanges, from 1; a cancelled one keeps its number
    terms       BLOB NOT NULL,                   -- SignedStatement of a fedpalm.exchange.terms.ExchangeTerms
    state       TEXT NOT NULL,                   -- JSON of fedpalm.exchange.machine.ExchangeMachine
    created_ms  INTEGER NOT NULL,                -- when the operator proposed it
    UNIQUE (plan_hash, number)
) STRICT;

-- Public statements: a site's signed yes, relayed to every other signer as it came. Who signs is said by
-- exchanges.state: the row of a site that took its yes back stays.
CREATE TABLE consents (
    exchange_id TEXT NOT NULL REFERENCES exchanges, -- table exchanges
    site        TEXT NOT NULL,                   -- whose it is
    signed      BLOB NOT NULL,                   -- SignedStatement of a fedpalm.exchange.consent.Consent
    PRIMARY KEY (exchange_id, site)
) STRICT;

-- Ciphertext only, sealed from a site to all other signers; the coordinator has no key to any of it. The bytes
-- lie in spool/ and are erased when the exchange is over; the row stays.
CREATE TABLE sealed_experts (
    exchange_id   TEXT NOT NULL REFERENCES exchanges, -- table exchanges
    sender        TEXT NOT NULL,                 -- site that sealed it
    expert_hash   TEXT NOT NULL,                 -- of the expert, as its header announces it; nobody may announce another's
    payload_hash  TEXT NOT NULL,                 -- of the sealed bytes
    payload_bytes INTEGER NOT NULL,              -- length
    received_ms   INTEGER NOT NULL,              -- when it was whole and verified
    PRIMARY KEY (exchange_id, sender),
    UNIQUE (exchange_id, expert_hash)
) STRICT;

-- Content keys, each sealed to the site that alone can open it, as its sender signed them. Deleted in the
-- transaction that ends the exchange.
CREATE TABLE expert_keys (
    exchange_id TEXT NOT NULL,                   -- with sender: table sealed_experts
    sender      TEXT NOT NULL,                   -- whose expert it opens
    recipient   TEXT NOT NULL,                   -- site that it is wrapped for
    wrapped     BLOB NOT NULL,                   -- HPKE ciphertext
    PRIMARY KEY (exchange_id, sender, recipient),
    FOREIGN KEY (exchange_id, sender) REFERENCES sealed_experts
) STRICT;

-- A site's signed word for the experts of other signers that it has opened.
CREATE TABLE expert_receipts (
    exchange_id TEXT NOT NULL REFERENCES exchanges, -- table exchanges
    site        TEXT NOT NULL,                   -- whose it is
    signed      BLOB NOT NULL,                   -- SignedStatement of a fedpalm.exchange.receipt.ExpertReceipt
    PRIMARY KEY (exchange_id, site)
) STRICT;

-- What operators did, in order, for whoever has to account for it; an operator reads it with
--   sqlite3 -readonly store.sqlite3 "SELECT datetime(at_ms / 1000, 'unixepoch'), * FROM operator_events"
CREATE TABLE operator_events (
    seq      INTEGER PRIMARY KEY,                -- order
    at_ms    INTEGER NOT NULL,                   -- when it was asked
    operator TEXT NOT NULL,                      -- name in the operator's certificate
    action   TEXT NOT NULL,                      -- submit, start, abort, resume, exchange propose, exchange close-answers, exchange cancel, invite, cancel invitation,
                                                 -- approve, reject, sign, revoke, rotate, new anchor, retire, renew
    run_id   TEXT NOT NULL,                      -- table runs, or the site that it is about
    detail   TEXT NOT NULL DEFAULT ''            -- the reason or the purpose given, if any
) STRICT;
