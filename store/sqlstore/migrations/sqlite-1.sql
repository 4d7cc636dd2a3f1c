CREATE TABLE behest_records (
	kind      TEXT NOT NULL,
	id        TEXT NOT NULL,
	version   INTEGER NOT NULL CHECK (version > 0),
	owner     TEXT NOT NULL,
	app       TEXT NOT NULL,
	due       TEXT,
	not_after TEXT,
	left_uses INTEGER NOT NULL CHECK (left_uses >= 0),
	data      BLOB NOT NULL,
	PRIMARY KEY (kind, id)
) STRICT;
-- next
CREATE INDEX behest_records_due ON behest_records (kind, due, id) WHERE due IS NOT NULL;
-- next
CREATE INDEX behest_records_app_due ON behest_records (kind, app, due, id) WHERE due IS NOT NULL AND app <> '';
-- next
CREATE INDEX behest_records_not_after ON behest_records (kind, not_after) WHERE not_after IS NOT NULL;
-- next
CREATE TABLE behest_log (
	n         INTEGER PRIMARY KEY CHECK (n > 0),
	kind      TEXT NOT NULL GENERATED ALWAYS AS ('ledger') VIRTUAL,
	id        TEXT NOT NULL,
	version   INTEGER NOT NULL CHECK (version > 0),
	owner     TEXT NOT NULL,
	app       TEXT NOT NULL,
	due       TEXT,
	not_after TEXT,
	left_uses INTEGER NOT NULL CHECK (left_uses >= 0),
	data      BLOB NOT NULL
) STRICT;
-- next
CREATE INDEX behest_log_due ON behest_log (due, id) WHERE due IS NOT NULL;
-- next
CREATE TABLE behest_log_ids (
	id TEXT NOT NULL PRIMARY KEY,
	n  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
-- next
CREATE TABLE behest_log_parts (
	part      INTEGER PRIMARY KEY,
	not_after TEXT NOT NULL
) STRICT;
-- next
CREATE TABLE behest_log_sorted (n INTEGER NOT NULL) STRICT;
-- next
INSERT INTO behest_log_sorted VALUES (0);
-- next
CREATE TRIGGER behest_log_gone AFTER DELETE ON behest_log BEGIN
	DELETE FROM behest_log_ids WHERE id = OLD.id;
END;
-- next
CREATE VIEW behest_ledger AS
	SELECT l.kind AS kind, i.id AS id, l.version AS version, l.owner AS owner, l.app AS app, l.due AS due, l.not_after AS not_after, l.left_uses AS left_uses, l.data AS data
		FROM behest_log_ids i CROSS JOIN behest_log l ON l.n = i.n
	UNION ALL
	SELECT kind, id, version, owner, app, due, not_after, left_uses, data FROM behest_log WHERE n > (SELECT n FROM behest_log_sorted);
