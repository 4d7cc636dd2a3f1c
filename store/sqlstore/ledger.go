package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/behest-go/behest/store"
)

// On SQLite the records of kind "ledger" are kept apart. Each use adds one to its account's, somewhere in the order of IDs, and an index that is brought up to date with
// every one of them costs more than all the rest of a use. So they are written to the end of a table, behest_log, and their IDs are entered into its index, behest_log_ids,
// thousands at a time and in order: then those of one account come to the same page. The view behest_ledger shows what is in the index, and looks through the few at the
// end of the log that are not yet. behest_log_sorted has the last row that is.
//
// Rows that are not in the index are added and nothing else: who wants to change or delete one enters them all first.
//
// What a Purge looks for has no index. Rows are purged in about the order in which they came, so for each 8192 of them behest_log_parts has the earliest not_after.

// ledgerKind is the kind that package grant has for its entries.
const ledgerKind = "ledger"

const (
	// maxUnsorted bounds the rows that are not in the index: the more, the less it costs to enter one, and the longer it takes to look through them.
	maxUnsorted = 16384
	partBits    = 13 // of the number of a row, which is in its part
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

// view is where they are looked for by ID.
func (d Dialect) view(kind string) string {
	if d.logs(kind) {
		return "behest_ledger"
	}
	return "behest_records"
}

const (
	// enter is for the rows after the argument.
	enter = "INSERT OR FAIL INTO behest_log_ids (id, n) SELECT id, n FROM behest_log WHERE n > ? ORDER BY id"
	// notePart notes when the first of some rows is over, of a part, the first argument, from the second up to the third.
	notePart = "INSERT INTO behest_log_parts (part, not_after) SELECT ?, earliest FROM (SELECT min(not_after) AS earliest FROM behest_log WHERE n >= ? AND n < ?)" +
		" WHERE earliest IS NOT NULL ON CONFLICT (part) DO UPDATE SET not_after = min(not_after, excluded.not_after)"
	// noteRow notes that a row, the first argument, is over at the second.
	noteRow = "INSERT INTO behest_log_parts (part, not_after) VALUES (?1 >> 13, ?2) ON CONFLICT (part) DO UPDATE SET not_after = min(not_after, excluded.not_after)"
)

// A tail is the rows at the end of the log that are not in its index, as a [Group] knows them.
type tail struct {
	stale  bool // others may have written, or what was written may have been taken back
	sorted int64
	last   int64
	ids    []string            // of the rows after sorted, up to last, in their order; also of those that others have removed by hand
	among  map[string]struct{} // the same
	// What ids and last were when the transaction began, or sorted changed since.
	began     int
	beganLast int64
	// tops has the last ID of an aggregate in the index, or a later one: what comes after it is not there. That goes for nearly every new entry, and spares a look.
	tops map[string]string
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
	t.ids = append(t.ids, id)
	t.among[id] = struct{}{}
}

func (t *tail) begin() { t.began, t.beganLast = len(t.ids), t.last }

// forget drops what came in this transaction, and has the rest looked at anew.
func (t *tail) forget() {
	t.stale = true
	for _, id := range t.ids[t.began:] {
		delete(t.among, id)
	}
	t.ids, t.last = t.ids[:t.began], t.beganLast
}

// catchUp reads what others have written.
func (t *tail) catchUp(ctx context.Context, x Execer) error {
	if !t.stale {
		return nil
	}
	var sorted int64
	if err := x.QueryRowContext(ctx, "SELECT n FROM behest_log_sorted").Scan(&sorted); err != nil {
		return fmt.Errorf("the table behest_log_sorted: %w", err)
	}
	if sorted != t.sorted {
		*t = newTail()
		t.sorted, t.last, t.beganLast = sorted, sorted, sorted
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

// sort enters the rows into the index.
func (t *tail) sort(ctx context.Context, x Execer) error {
	if len(t.ids) == 0 {
		return nil
	}
	if err := sortNow(ctx, x); err != nil {
		return err
	}
	for _, id := range t.ids {
		if top, known := t.tops[head(id)]; known && top < id {
			t.tops[head(id)] = id
		}
	}
	t.sorted = t.last
	t.ids = t.ids[:0]
	clear(t.among)
	t.begin()
	return nil
}

// head is the part of an ID that tells the aggregate of those that have more, "" for others.
func head(id string) string { return id[:strings.IndexByte(id, '.')+1] }

var topRows = rows("WITH k (n, low, high) AS (VALUES ", "(#, ?, ?)",
	") SELECT k.n, coalesce((SELECT max(id) FROM behest_log_ids WHERE id >= k.low AND id < k.high), '') FROM k")

// beyond leaves out those of all that cannot be in the index.
func (t *tail) beyond(ctx context.Context, x Execer, all []*entry) (rest []*entry, err error) {
	if len(t.tops) > maxKnown {
		clear(t.tops)
	}
	var unknown []string
	for _, e := range all {
		h := head(e.key.id)
		if _, known := t.tops[h]; !known && h != "" {
			t.tops[h] = "" // asked for once
			unknown = append(unknown, h)
		}
	}
	if err := inBatches(unknown, func(part []string) error {
		args := make([]any, 0, 2*len(part))
		for _, h := range part {
			args = append(args, h, h[:len(h)-1]+"/") // the character after "."
		}
		var n int
		var top string
		return eachRow(ctx, x, topRows[len(part)], args, func() { t.tops[part[n]] = top }, &n, &top)
	}); err != nil {
		clear(t.tops)
		return nil, err
	}
	for _, e := range all {
		if h := head(e.key.id); h == "" || e.key.id <= t.tops[h] {
			rest = append(rest, e)
		}
	}
	return rest, nil
}

// sortNow enters all rows into the index that are not in it.
func sortNow(ctx context.Context, x Execer) error {
	var sorted, last int64
	err := x.QueryRowContext(ctx, "SELECT n, (SELECT coalesce(max(n), 0) FROM behest_log) FROM behest_log_sorted").Scan(&sorted, &last)
	if err != nil {
		return fmt.Errorf("the table behest_log_sorted: %w", err)
	}
	if last <= sorted {
		return nil
	}
	if _, err := x.ExecContext(ctx, enter, sorted); err != nil {
		return err
	}
	for from := sorted + 1; from <= last; {
		part := from >> partBits
		to := (part + 1) << partBits
		if _, err := x.ExecContext(ctx, notePart, part, from, to); err != nil {
			return err
		}
		from = to
	}
	_, err = x.ExecContext(ctx, "UPDATE behest_log_sorted SET n = ?", last)
	return err
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
