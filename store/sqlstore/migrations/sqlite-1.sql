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
