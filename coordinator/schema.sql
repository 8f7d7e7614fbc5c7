-- The coordinator's store. Hashes are SHA-256 in lower-case hex, times are Unix milliseconds.
-- There is nothing here that a site keeps to itself: no image, no template, no head, no key. Model
-- and update vectors lie in files (models/, spool/); a row says that a file is complete and durable.

CREATE TABLE sites (
    site             TEXT PRIMARY KEY,           -- name, as in its certificate
    fingerprint      TEXT NOT NULL,              -- of the certificate that may connect; a new admission replaces it
    admitted_ms      INTEGER NOT NULL,           -- when the operator admitted it
    expires_ms       INTEGER NOT NULL,           -- end of that certificate
    last_seen_ms     INTEGER NOT NULL DEFAULT 0, -- last time a connection began or ended; 0: never
    software_version TEXT NOT NULL DEFAULT ''    -- what it said in its last Hello
) STRICT;

CREATE TABLE runs (
    run_id     TEXT PRIMARY KEY,                 -- plan name and 32 random bits
    plan       BLOB NOT NULL,                    -- canonical JSON, the bytes that are hashed; never changes
    state      TEXT NOT NULL,                    -- JSON of fedpalm.rounds.run.Run: the truth about run and current attempt
    created_ms INTEGER NOT NULL                  -- when the operator submitted the plan; the order of runs
) STRICT;

-- One row an attempt, written in the same transaction as runs.state. The program shows the current
-- attempt out of runs.state; this is the history, which an operator reads with
--   sqlite3 -readonly store.sqlite3 "SELECT round, attempt, cohort, reason FROM attempts WHERE run_id = '...'"
CREATE TABLE attempts (
    run_id     TEXT NOT NULL REFERENCES runs,    -- table runs
    round      INTEGER NOT NULL,                 -- from 1
    attempt    INTEGER NOT NULL,                 -- from 1 in each round
    opened_ms  INTEGER NOT NULL,                 -- when it began to wait for sites
    cohort     TEXT NOT NULL DEFAULT '[]',       -- JSON list of sites; empty until sealed
    closed_ms  INTEGER NOT NULL DEFAULT 0,       -- 0: not over
    model_hash TEXT NOT NULL DEFAULT '',         -- committed model; empty if aborted or not over
    reason     TEXT NOT NULL DEFAULT '',         -- why it was aborted
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

CREATE TABLE exchanges (
    exchange_id TEXT PRIMARY KEY,                -- chosen at the start
    run_id      TEXT NOT NULL REFERENCES runs,   -- table runs
    state       TEXT NOT NULL,                   -- JSON of fedpalm.exchange.machine.ExchangeMachine
    created_ms  INTEGER NOT NULL                 -- when the operator started it
) STRICT;

-- Public statements: a site's signed yes, relayed to every other site as it came.
CREATE TABLE consents (
    exchange_id TEXT NOT NULL REFERENCES exchanges, -- table exchanges
    site        TEXT NOT NULL,                   -- whose it is
    consent     BLOB NOT NULL,                   -- canonical JSON of statement, signature and certificates
    PRIMARY KEY (exchange_id, site)
) STRICT;

-- Ciphertext only, sealed from site to site; the coordinator has no key to any of it. The bytes lie
-- in spool/ and are erased when the exchange is over; the row stays.
CREATE TABLE sealed_experts (
    exchange_id   TEXT NOT NULL REFERENCES exchanges, -- table exchanges
    sender        TEXT NOT NULL,                 -- site that sealed it
    recipient     TEXT NOT NULL,                 -- site that alone can open it
    payload_hash  TEXT NOT NULL,                 -- of the sealed bytes
    payload_bytes INTEGER NOT NULL,              -- length
    received_ms   INTEGER NOT NULL,              -- when it was whole and verified
    PRIMARY KEY (exchange_id, sender, recipient)
) STRICT;

-- What operators did, in order, for whoever has to account for it; an operator reads it with
--   sqlite3 -readonly store.sqlite3 "SELECT datetime(at_ms / 1000, 'unixepoch'), * FROM operator_events"
CREATE TABLE operator_events (
    seq      INTEGER PRIMARY KEY,                -- order
    at_ms    INTEGER NOT NULL,                   -- when it was asked
    operator TEXT NOT NULL,                      -- name in the operator's certificate
    action   TEXT NOT NULL,                      -- submit, start, abort, resume, exchange start, exchange cancel
    run_id   TEXT NOT NULL,                      -- table runs
    detail   TEXT NOT NULL DEFAULT ''            -- the reason given, if any
) STRICT;
