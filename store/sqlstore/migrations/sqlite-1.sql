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
CREATE TABLE behest_log_runs (
	first_id TEXT NOT NULL PRIMARY KEY,
	last     TEXT NOT NULL,
	base     INTEGER NOT NULL,
	rows     TEXT NOT NULL
) STRICT, WITHOUT ROWID;
-- next
CREATE TABLE behest_log_parts (
	part      INTEGER PRIMARY KEY,
	not_after TEXT NOT NULL
) STRICT;
-- next
CREATE TABLE behest_log_sorted (n INTEGER NOT NULL, removed INTEGER NOT NULL) STRICT;
-- next
INSERT INTO behest_log_sorted VALUES (0, 0);
-- next
CREATE TRIGGER behest_log_gone AFTER DELETE ON behest_log BEGIN
	DELETE FROM behest_log_runs WHERE first_id = (SELECT max(first_id) FROM behest_log_runs WHERE first_id <= OLD.id)
		AND NOT EXISTS (SELECT 1 FROM json_each(rows) j CROSS JOIN behest_log l ON l.n = base + j.value);
	UPDATE behest_log_sorted SET removed = removed + 1 WHERE n < OLD.n;
END;
-- next
CREATE VIEW behest_log_indexed AS
	SELECT r.first_id AS first_id, j.key AS place, l.n AS n,
			l.kind AS kind, l.id AS id, l.version AS version, l.owner AS owner, l.app AS app, l.due AS due, l.not_after AS not_after, l.left_uses AS left_uses, l.data AS data
		FROM behest_log_runs r CROSS JOIN json_each(r.rows) j CROSS JOIN behest_log l ON l.n = r.base + j.value;
-- next
CREATE VIEW behest_ledger AS
	SELECT kind, id, version, owner, app, due, not_after, left_uses, data FROM behest_log_indexed
	UNION ALL
	SELECT kind, id, version, owner, app, due, not_after, left_uses, data FROM behest_log WHERE n > (SELECT n FROM behest_log_sorted);
