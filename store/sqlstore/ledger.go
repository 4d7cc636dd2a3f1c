package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/behest-go/behest/store"
)

// On SQLite the records of kind "ledger" are kept apart. Each use adds one to its account's, somewhere in the order of IDs, and an index that is brought up to date with
// every one of them costs more than all the rest of a use. So they are written to the end of a table, behest_log, and are entered into an index of their IDs,
// behest_log_runs, thousands at a time and in order: then those of one account are together. behest_log_sorted has the last row that is in it. The view behest_ledger shows
// what is in the index, and looks through the few at the end of the log that are not yet.
//
// A row of the index, a run, stands for some entries that follow one another: it has the ID of the first, that of the last but for its aggregate, and where all of them are,
// in the order of their IDs, as a JSON array of distances from a base. The entries of a run are of one aggregate, and no other that is in the index comes between them. Where one does, the run is taken apart.
// Of those that are deleted, the numbers stay in the run until it has none that is there. They are never given to others.
//
// Rows that are not in the index are added and nothing else: who wants to change or delete one enters them all first. Of those that somebody deletes by hand, removed is
// the number.
//
// What a Purge looks for has no index. Rows are purged in about the order in which they came, so for each 8192 of them behest_log_parts has the earliest not_after.

// ledgerKind is the kind that package grant has for its entries.
const ledgerKind = "ledger"

const (
	// maxUnsorted bounds the rows that are not in the index: the more, the less it costs to enter one, and the longer it takes to look through them.
	maxUnsorted = 16384
	partBits    = 13 // of the number of a row, which is in its part
	// maxRun bounds the entries of a run, so that SQLite keeps it on one page.
	maxRun = 20
)

// logs reports whether the records of a kind are kept so.
func (d Dialect) logs(kind string) bool { return d == SQLite && kind == ledgerKind }

// table is where the records of a kind are written.
func (d Dialect) table(kind string) string {
	if d.logs(kind) {
		return "behest_log"
	}
	return "behest_records"
}

const (
	// notePart notes when the first of some rows is over, of a part, the first argument, from the second up to the third.
	notePart = "INSERT INTO behest_log_parts (part, not_after) SELECT ?, earliest FROM (SELECT min(not_after) AS earliest FROM behest_log WHERE n >= ? AND n < ?)" +
		" WHERE earliest IS NOT NULL ON CONFLICT (part) DO UPDATE SET not_after = min(not_after, excluded.not_after)"
	// noteRow notes that a row, the first argument, is over at the second.
	noteRow = "INSERT INTO behest_log_parts (part, not_after) VALUES (?1 >> 13, ?2) ON CONFLICT (part) DO UPDATE SET not_after = min(not_after, excluded.not_after)"
)

// A tail is the rows at the end of the log that are not in its index, as a [Group] knows them.
type tail struct {
	stale   bool // others may have written, or what was written may have been taken back
	sorted  int64
	removed int64
	last    int64
	rows    []logged            // after sorted, up to last, in their order
	among   map[string]struct{} // their IDs
	// What rows and last were when the transaction began, or sorted changed since.
	began     int
	beganLast int64
	// tops has the last ID of an aggregate in the index, or a later one: what comes after it is not there. That goes for nearly every new entry, and spares a look.
	tops map[string]string
}

// logged is a row of the log.
type logged struct {
	n  int64
	id string
}

func newTail() tail {
	return tail{stale: true, sorted: -1, among: make(map[string]struct{}), tops: make(map[string]string)}
}

func (t *tail) has(id string) bool {
	_, has := t.among[id]
	return has
}

func (t *tail) add(n int64, id string) {
	t.last = n
	t.rows = append(t.rows, logged{n, id})
	t.among[id] = struct{}{}
}

func (t *tail) begin() { t.began, t.beganLast = len(t.rows), t.last }

// forget drops what came in this transaction, and has the rest looked at anew.
func (t *tail) forget() {
	t.stale = true
	for _, r := range t.rows[t.began:] {
		delete(t.among, r.id)
	}
	t.rows, t.last = t.rows[:t.began], t.beganLast
}

// catchUp reads what others have written.
func (t *tail) catchUp(ctx context.Context, x Execer) error {
	if !t.stale {
		return nil
	}
	var sorted, removed int64
	if err := x.QueryRowContext(ctx, "SELECT n, removed FROM behest_log_sorted").Scan(&sorted, &removed); err != nil {
		return fmt.Errorf("the table behest_log_sorted: %w", err)
	}
	if sorted != t.sorted || removed != t.removed {
		*t = newTail()
		t.sorted, t.removed, t.last, t.beganLast = sorted, removed, sorted, sorted
	}
	var n int64
	var id string
	err := eachRow(ctx, x, "SELECT n, id FROM behest_log WHERE n > ? ORDER BY n", []any{t.last}, func() { t.add(n, id) }, &n, &id)
	t.stale = err != nil
	return err
}

// eachRow calls f for each row of an answer, with its columns in to.
func eachRow(ctx context.Context, x Execer, query string, args []any, f func(), to ...any) error {
	rows, err := x.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := rows.Scan(to...); err != nil {
			return err
		}
		f()
	}
	return errors.Join(rows.Err(), rows.Close())
}

// head is the part of an ID that tells the aggregate of those that have more, "" for others.
func head(id string) string { return id[:strings.IndexByte(id, '.')+1] }

// beyondHead is after all IDs that have this head, and before all others that are after them: "/" follows ".".
func beyondHead(head string) string { return head[:len(head)-1] + "/" }

// lastRun is the run in which an ID would be, before is the ID.
const lastRun = "(SELECT max(first_id) FROM behest_log_runs WHERE first_id <= "

var topRows = rows("WITH k (n, low, high) AS (VALUES ", "(#, ?, ?)",
	") SELECT k.n, (SELECT last FROM behest_log_runs WHERE first_id >= k.low AND first_id < k.high ORDER BY first_id DESC LIMIT 1) AS top FROM k WHERE top IS NOT NULL")

// learn makes the tops of all these heads known.
func (t *tail) learn(ctx context.Context, x Execer, heads func(yield func(head string) bool)) error {
	var unknown []string
	for h := range heads {
		if _, known := t.tops[h]; !known && h != "" {
			t.tops[h] = "" // asked for once
			unknown = append(unknown, h)
		}
	}
	err := inBatches(unknown, func(part []string) error {
		args := make([]any, 0, 2*len(part))
		for _, h := range part {
			args = append(args, h, beyondHead(h))
		}
		var n int
		var last string
		return eachRow(ctx, x, topRows[len(part)], args, func() { t.tops[part[n]] = part[n] + last }, &n, &last)
	})
	if err != nil {
		clear(t.tops)
	}
	return err
}

// beyond leaves out those of all that cannot be in the index.
func (t *tail) beyond(ctx context.Context, x Execer, all []*entry) (rest []*entry, err error) {
	err = t.learn(ctx, x, func(yield func(string) bool) {
		for _, e := range all {
			if !yield(head(e.key.id)) {
				return
			}
		}
	})
	if err != nil {
		return nil, err
	}
	for _, e := range all {
		if h := head(e.key.id); h == "" || e.key.id <= t.tops[h] {
			rest = append(rest, e)
		}
	}
	return rest, nil
}

// sort enters the rows into the index.
func (t *tail) sort(ctx context.Context, x Execer) error {
	if err := t.catchUp(ctx, x); err != nil {
		return err
	}
	if len(t.rows) == 0 {
		return nil
	}
	sorted := slices.Clone(t.rows)
	slices.SortFunc(sorted, func(a, b logged) int { return strings.Compare(a.id, b.id) })
	for i, r := range sorted[1:] {
		if r.id == sorted[i].id {
			return twice(r.id)
		}
	}
	if err := t.learn(ctx, x, func(yield func(string) bool) {
		for _, r := range sorted {
			if !yield(head(r.id)) {
				return
			}
		}
	}); err != nil {
		return err
	}
	var runs []run
	for rest := sorted; len(rest) > 0; {
		h, n := head(rest[0].id), 1
		for n < len(rest) && head(rest[n].id) == h {
			n++
		}
		same := rest[:n]
		rest = rest[n:]
		for len(same) > 0 && (h == "" || same[0].id <= t.tops[h]) {
			if err := makeRoom(ctx, x, same[0].id); err != nil {
				return err
			}
			runs = append(runs, runOf(same[:1]))
			same = same[1:]
		}
		for part := range slices.Chunk(same, maxRun) {
			runs = append(runs, runOf(part))
			t.tops[h] = part[len(part)-1].id
		}
	}
	if err := insertRuns(ctx, x, runs); err != nil {
		return err
	}
	noted := int64(-1)
	for _, r := range t.rows { // not from number to number: in a damaged file they may be far apart
		part := r.n >> partBits
		if part == noted {
			continue
		}
		if _, err := x.ExecContext(ctx, notePart, part, max(t.sorted+1, part<<partBits), (part+1)<<partBits); err != nil {
			return err
		}
		noted = part
	}
	if _, err := x.ExecContext(ctx, "UPDATE behest_log_sorted SET n = ?", t.last); err != nil {
		return err
	}
	t.sorted = t.last
	t.rows = t.rows[:0]
	clear(t.among)
	t.begin()
	return nil
}

// A run is a row of the index.
type run struct {
	first, last string
	base        int64
	rows        string
}

// runOf makes a run of entries that are in order.
func runOf(all []logged) run {
	last := all[len(all)-1].id
	r := run{first: all[0].id, last: last[len(head(last)):], base: all[0].n}
	for _, e := range all {
		r.base = min(r.base, e.n)
	}
	text := append(make([]byte, 0, 8*len(all)), '[')
	for i, e := range all {
		if i > 0 {
			text = append(text, ',')
		}
		text = strconv.AppendInt(text, e.n-r.base, 10)
	}
	r.rows = string(append(text, ']'))
	return r
}

var insertRun = rows("INSERT OR FAIL INTO behest_log_runs (first_id, last, base, rows) VALUES ", "(?, ?, ?, ?)", "")

func insertRuns(ctx context.Context, x Execer, runs []run) error {
	return inBatches(runs, func(part []run) error {
		args := make([]any, 0, 4*len(part))
		for _, r := range part {
			args = append(args, r.first, r.last, r.base, r.rows)
		}
		_, err := x.ExecContext(ctx, insertRun[len(part)], args...)
		return err
	})
}

// makeRoom takes apart the run in the middle of which an ID would be.
func makeRoom(ctx context.Context, x Execer, id string) error {
	var runs []run
	var first string
	var e logged
	var inside, there bool
	err := eachRow(ctx, x, "SELECT first_id, id, n FROM behest_log_indexed WHERE first_id = "+lastRun+"?)", []any{id}, func() {
		runs = append(runs, runOf([]logged{e}))
		inside, there = inside || e.id > id, there || e.id == id
	}, &first, &e.id, &e.n)
	switch {
	case there:
		return twice(id)
	case err != nil || !inside:
		return err
	}
	if _, err := x.ExecContext(ctx, "DELETE FROM behest_log_runs WHERE first_id = ?", first); err != nil {
		return err
	}
	return insertRuns(ctx, x, runs)
}

func twice(id string) error { return fmt.Errorf("two entries in behest_log have the id %q", id) }

// sortNow enters all rows into the index that are not in it.
func sortNow(ctx context.Context, x Execer) error {
	t := newTail()
	return t.sort(ctx, x)
}

// purgeLedger is Purge of the ledger, in a transaction.
func (s session) purgeLedger(ctx context.Context, before string, n int) (removed int, err error) {
	if err := sortNow(ctx, s.x); err != nil {
		return 0, err
	}
	var part int64
	var parts []int64
	err = eachRow(ctx, s.x, "SELECT part FROM behest_log_parts WHERE not_after < ? ORDER BY not_after LIMIT ?", []any{before, store.MaxPage},
		func() { parts = append(parts, part) }, &part)
	if err != nil {
		return 0, err
	}
	for _, part := range parts {
		if removed == n {
			break
		}
		from, to := part<<partBits, (part+1)<<partBits
		result, err := s.x.ExecContext(ctx, "DELETE FROM behest_log WHERE n IN (SELECT n FROM behest_log WHERE n >= ? AND n < ? AND not_after < ? LIMIT ?)", from, to, before, n-removed)
		if err != nil {
			return 0, err
		}
		deleted, err := result.RowsAffected()
		if err != nil {
			return 0, err
		}
		removed += int(deleted)
		if _, err := s.x.ExecContext(ctx, "DELETE FROM behest_log_parts WHERE part = ?", part); err != nil {
			return 0, err
		}
		if _, err := s.x.ExecContext(ctx, notePart, part, from, to); err != nil {
			return 0, err
		}
	}
	return removed, nil
}

// unindexed are the rows that are not in the index.
const unindexed = "SELECT " + columns + " FROM behest_log WHERE n > (SELECT n FROM behest_log_sorted)"

// getLogged is for a Get of entries.
func (s *statement) getLogged(ids []string) {
	s.add("SELECT " + columns + " FROM behest_log_indexed WHERE first_id IN (SELECT " + lastRun + "value) FROM ")
	s.list(ids, idText)
	s.add(") AND id IN ")
	s.list(ids, idText)
	s.add(" UNION ALL " + unindexed + " AND id IN ")
	s.list(ids, idText)
}

// listLogged is for a List of entries: so many from the index, in whose order they are already, and as many from the rest, and of both the first.
func (s *statement) listLogged(q *store.Query) {
	s.add("SELECT " + columns + " FROM (SELECT " + columns + " FROM (SELECT " + columns + " FROM behest_log_indexed")
	s.page(q)
	from, to := q.Prefix, after(q.Prefix)
	switch {
	case q.After == "":
	case !q.Reverse:
		from = max(from, q.After)
	case to == "" || q.After < to:
		to = q.After
	}
	if from != "" {
		s.add(" AND first_id >= coalesce("+lastRun+"?), '')", idText(from))
	}
	if to != "" {
		s.add(" AND first_id < ?", idText(to))
	}
	d := direction(q)
	s.add(" ORDER BY first_id"+d+", place"+d+" LIMIT ?)", q.Limit)
	s.add(" UNION ALL SELECT " + columns + " FROM (SELECT " + columns + " FROM behest_log")
	s.page(q)
	s.add(" AND n > (SELECT n FROM behest_log_sorted) ORDER BY id"+d+" LIMIT ?)) ORDER BY id"+d+" LIMIT ?", q.Limit, q.Limit)
}
