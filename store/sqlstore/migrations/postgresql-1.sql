CREATE TABLE behest_records (
	kind      text COLLATE "C" NOT NULL,
	id        text COLLATE "C" NOT NULL,
	version   bigint NOT NULL CHECK (version > 0),
	owner     text COLLATE "C" NOT NULL,
	app       text COLLATE "C" NOT NULL,
	due       timestamptz,
	not_after timestamptz,
	left_uses bigint NOT NULL CHECK (left_uses >= 0),
	data      bytea NOT NULL,
	PRIMARY KEY (kind, id)
) WITH (fillfactor = 90);
-- next
CREATE INDEX behest_records_owner ON behest_records (owner, kind) WHERE owner <> '';
-- next
CREATE INDEX behest_records_due ON behest_records (kind, due, id) WHERE due IS NOT NULL;
-- next
CREATE INDEX behest_records_app_due ON behest_records (kind, left(app, 100), due, id) WHERE due IS NOT NULL AND app <> '';
-- next
CREATE INDEX behest_records_not_after ON behest_records (kind, not_after) WHERE not_after IS NOT NULL;
-- next
-- Until when somebody listens: one row, which they put off.
CREATE TABLE behest_listening (until timestamptz NOT NULL) WITH (fillfactor = 10);
-- next
INSERT INTO behest_listening VALUES ('-infinity');
-- next
-- An Apply in one round trip. It locks the aggregate and looks only then: each statement in here sees all that was committed before it began, as
-- READ COMMITTED has it, so nothing that is checked changes before the end of the transaction. Nothing in here fails because of what a caller asked for,
-- and a refusal writes nothing, not even a lock on a row: it costs no flush to the disk.
-- Few parameters, since each costs time: numbers has 5 elements an operation (verb, version, left, amount, bytes of content), words has 6 (kind, id,
-- owner, app, due, not_after). The answer is: why it refused, the operation that did, the version there, what is left.
CREATE FUNCTION behest_apply(at timestamptz, is_use boolean, numbers bigint[], words text[], content bytea) RETURNS bigint[]
LANGUAGE plpgsql AS $$
DECLARE
	n         int := array_length(numbers, 1) / 5;
	it        record;
	was       bigint[];
	loose     int[];
	i         int;
	again     boolean;
	verb      int;
	want      bigint;
	amount    bigint;
	akind     text;
	aid       text;
	there     bigint;
	remaining bigint;
	ends      timestamptz;
	behind    bigint;
	refused   int := 0;
	start     int := 1;
	v         int := 0;
	w         int := 0;
BEGIN
	IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
		RETURN ARRAY[-1, 0, 0, 0];
	END IF;
	IF pg_advisory_xact_lock(hashtextextended(split_part(words[2], '.', 1) COLLATE "C", 7105)) IS NULL THEN -- never; as a condition it costs less than as a statement
		RETURN NULL;
	END IF;
	-- What nearly all calls are: three checks of one kind, a spend, a new record. Either this does it all, or it does nothing, and what follows finds out why.
	-- A checked record that a claim or a purge could change is left to that as well. The plan must not depend on the values, or there is one made for each call.
	IF is_use THEN
		UPDATE behest_records r SET left_uses = r.left_uses - numbers[19]
			WHERE r.kind = words[19] AND r.id = words[20] AND r.left_uses >= numbers[19] AND (r.not_after IS NULL OR at < r.not_after)
			AND (numbers[2] > 0)::int + (numbers[7] > 0)::int + (numbers[12] > 0)::int = (
				SELECT coalesce(sum(CASE WHEN c.due IS NULL AND c.not_after IS NULL
					AND c.version = CASE c.id WHEN words[2] THEN numbers[2] WHEN words[8] THEN numbers[7] ELSE numbers[12] END THEN 1 ELSE 4 END), 0)
				FROM behest_records c WHERE c.kind = words[1] AND c.id IN (words[2], words[8], words[14]))
			AND NOT EXISTS (SELECT FROM behest_records e WHERE e.kind = words[25] AND e.id = words[26])
			RETURNING r.left_uses INTO behind;
		IF behind IS NOT NULL THEN
			INSERT INTO behest_records (kind, id, version, owner, app, due, not_after, left_uses, data)
				VALUES (words[25], words[26], 1, words[27], words[28], words[29]::timestamptz, words[30]::timestamptz, numbers[23], content);
			RETURN ARRAY[0, 0, 0, behind];
		END IF;
	END IF;
	-- One look at all of them, so that a refusal is about one moment. The series is always as long as it may be, so that one plan serves all.
	LOOP
		behind := NULL; loose := '{}';
		FOR it IN
			SELECT s.i, c.version, c.left_uses, c.due, c.not_after FROM generate_series(0, 31) s (i) LEFT JOIN LATERAL (
				SELECT r.version, r.left_uses, r.due, r.not_after FROM behest_records r WHERE r.kind = words[6*s.i+1] AND r.id = words[6*s.i+2] LIMIT 1) c ON true
			WHERE s.i < n ORDER BY s.i
		LOOP
			v := 5 * it.i; w := 6 * it.i;
			verb := numbers[v+1]; want := numbers[v+2];
			there := coalesce(it.version, 0); remaining := coalesce(it.left_uses, 0);
			was[it.i+1] := there;
			IF it.due IS NOT NULL OR it.not_after IS NOT NULL THEN
				loose := loose || it.i;
			END IF;
			IF verb = 3 THEN
				IF want <> there THEN refused := 1; END IF;
			ELSIF verb = 1 THEN
				IF want <> -1 AND want <> there THEN refused := 1; END IF;
			ELSIF verb = 2 THEN
				IF want <> -1 AND (want <> there OR there = 0) THEN refused := 1; END IF;
			ELSIF there = 0 AND verb = 4 THEN
				refused := 2;
			ELSE
				ends := it.not_after;
				IF there = 0 THEN
					remaining := numbers[v+3]; ends := words[w+6]::timestamptz;
				END IF;
				amount := numbers[v+4];
				IF at >= ends THEN
					refused := 3;
				ELSIF remaining = 0 OR remaining < amount THEN
					refused := 4;
				ELSIF behind IS NULL OR remaining - amount < behind THEN
					behind := remaining - amount;
				END IF;
				IF refused <> 0 AND there = 0 THEN remaining := 0; END IF;
			END IF;
			IF refused <> 0 THEN
				RETURN ARRAY[refused, it.i, there, remaining];
			END IF;
		END LOOP;
		-- Claims and purges do not lock aggregates: what they could change is locked, and if they have just changed it, all begins anew.
		again := false;
		FOREACH i IN ARRAY loose LOOP
			SELECT r.version INTO there FROM behest_records r WHERE r.kind = words[6*i+1] AND r.id = words[6*i+2] FOR NO KEY UPDATE;
			again := there IS DISTINCT FROM was[i+1];
			EXIT WHEN again;
		END LOOP;
		EXIT WHEN NOT again;
	END LOOP;
	v := 0; w := 0;
	FOR i IN 1..n LOOP
		verb := numbers[v+1];
		IF verb <> 3 THEN
			akind := words[w+1]; aid := words[w+2]; amount := numbers[v+4];
			IF verb = 4 OR verb = 5 AND was[i] > 0 THEN
				IF amount > 0 THEN
					UPDATE behest_records r SET left_uses = r.left_uses - amount WHERE r.kind = akind AND r.id = aid;
				END IF;
			ELSIF verb = 1 AND was[i] > 0 THEN
				UPDATE behest_records r SET version = r.version + 1, owner = words[w+3], app = words[w+4], due = words[w+5]::timestamptz, not_after = words[w+6]::timestamptz,
					data = substring(content FROM start FOR numbers[v+5]::int) WHERE r.kind = akind AND r.id = aid;
			ELSIF verb = 1 OR verb = 5 THEN
				INSERT INTO behest_records (kind, id, version, owner, app, due, not_after, left_uses, data) VALUES (akind, aid, 1, words[w+3], words[w+4],
					words[w+5]::timestamptz, words[w+6]::timestamptz, numbers[v+3] - amount, substring(content FROM start FOR numbers[v+5]::int));
			ELSIF verb = 2 AND was[i] > 0 THEN
				DELETE FROM behest_records r WHERE r.kind = akind AND r.id = aid;
			END IF;
			-- Who listens hears of it with the commit. Only then, and not for uses: NOTIFY has commits wait for each other.
			IF verb = 1 AND words[w+5]::timestamptz <= at AND EXISTS (SELECT FROM behest_listening WHERE until > now()) THEN
				PERFORM pg_notify('behest_' || 'behest_records'::regclass::oid, words[w+4]);
			END IF;
			start := start + numbers[v+5];
		END IF;
		v := v + 5; w := w + 6;
	END LOOP;
	RETURN ARRAY[0, 0, 0, coalesce(behind, 0)];
END $$;
