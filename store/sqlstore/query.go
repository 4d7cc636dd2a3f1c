package sqlstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/behest-go/behest/store"
)

const columns = "kind, id, version, owner, app, due, not_after, left_uses, data"

// shortApp is the part of an app that is in indexes of PostgreSQL, whose entries must not exceed a third of a page.
const shortApp = "left(app, 100)"

// scan reads the columns of one record, and extra ones that follow them.
func scan(rows *sql.Rows, extra ...any) (r store.Record, err error) {
	var kind, id, owner, app string
	var version, left int64
	var due, notAfter stamp
	dest := append([]any{&kind, &id, &version, &owner, &app, &due, &notAfter, &left, &r.Data}, extra...)
	if err = rows.Scan(dest...); err != nil {
		for i := range dest {
			dest[i] = new(any)
		}
		if rows.Scan(dest...) != nil { // not the record's fault
			return r, err
		}
		return r, corrupt(*dest[0].(*any), *dest[1].(*any), err)
	}
	var errs [4]error
	r.Kind, errs[0] = wordOf(kind)
	r.ID, errs[1] = idOf(id)
	r.Owner, errs[2] = wordOf(owner)
	r.App, errs[3] = wordOf(app)
	if err = errors.Join(errs[:]...); err == nil {
		err = sane(version, left)
	}
	if err != nil {
		return r, corrupt(kind, id, err)
	}
	r.Version, r.Left, r.Due, r.NotAfter = uint64(version), left, due.Time, notAfter.Time
	if len(r.Data) == 0 {
		r.Data = nil
	}
	return r, nil
}

func sane(version, left int64) error {
	switch {
	case version < 1:
		return fmt.Errorf("its version is %d", version)
	case left < 0:
		return fmt.Errorf("its left_uses is %d", left)
	}
	return nil
}

func corrupt(kind, id any, err error) error {
	return fmt.Errorf("the record of kind %q with id %q is corrupt: %w", text(kind), text(id), err)
}

func text(v any) string {
	if b, ok := v.([]byte); ok {
		v = string(b)
	}
	return fmt.Sprint(v)
}

// A statement is SQL with its arguments, put together.
type statement struct {
	d    Dialect
	sql  strings.Builder
	args []any
}

// add appends SQL in which each "?" stands for an argument.
func (s *statement) add(sql string, args ...any) {
	s.args = append(s.args, args...)
	if s.d == SQLite {
		s.sql.WriteString(sql)
		return
	}
	n := len(s.args) - len(args)
	for i, part := range strings.Split(sql, "?") {
		if i > 0 {
			fmt.Fprintf(&s.sql, "$%d", n+i)
		}
		s.sql.WriteString(part)
	}
}

// list appends a list of words as a set to look in.
func (s *statement) list(words []string, text func(string) string) {
	if s.d == PostgreSQL {
		var a array
		for _, w := range words {
			a.add(text(w))
		}
		s.add("(?::text[])", a.String())
		return
	}
	mapped := make([]string, len(words))
	for i, w := range words {
		mapped[i] = text(w)
	}
	encoded, _ := json.Marshal(mapped) // strings always can
	s.add("(SELECT value FROM json_each(?))", string(encoded))
}

// where appends the conditions of q, but for After.
func (s *statement) where(q *store.Query) {
	s.add(" WHERE kind = ?", wordText(q.Kind))
	if q.Prefix != "" {
		s.add(" AND id >= ?", idText(q.Prefix))
		if end := after(q.Prefix); end != "" {
			s.add(" AND id < ?", idText(end))
		}
	}
	if q.Owner != "" {
		s.add(" AND owner = ? AND owner <> ''", wordText(q.Owner)) // the second, for the partial index
	}
	if q.App != "" {
		app := wordText(q.App)
		if s.d == PostgreSQL {
			s.add(" AND "+shortApp+" = left(?, 100)", app)
		}
		s.add(" AND app = ? AND app <> ''", app)
	}
	if len(q.NotApps) > 0 {
		if s.d == PostgreSQL {
			s.add(" AND app <> ALL ")
		} else {
			s.add(" AND app NOT IN ")
		}
		s.list(q.NotApps, wordText)
	}
	if !isNever(q.DueBy) {
		s.add(" AND due IS NOT NULL AND due <= ?"+s.d.cast(), s.d.timeBound(q.DueBy))
	}
}

// page appends the conditions of q.
func (s *statement) page(q *store.Query) {
	s.where(q)
	switch {
	case q.After == "":
	case q.Reverse:
		s.add(" AND id < ?", idText(q.After))
	default:
		s.add(" AND id > ?", idText(q.After))
	}
}

func direction(q *store.Query) string {
	if q.Reverse {
		return " DESC"
	}
	return ""
}

func (d Dialect) cast() string {
	if d == PostgreSQL {
		return "::timestamptz"
	}
	return ""
}

// query runs a statement whose rows are records, and calls each with them.
func (s session) query(ctx context.Context, st *statement, extra []any, each func(store.Record)) error {
	rows, err := s.x.QueryContext(ctx, st.sql.String(), st.args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		r, err := scan(rows, extra...)
		if err != nil {
			return err
		}
		each(r)
	}
	// What was written is committed only when the last answer has been read.
	return errors.Join(rows.Err(), rows.Close())
}

// Get implements [store.Store].
func (s session) Get(ctx context.Context, kind string, ids ...string) ([]store.Record, error) {
	if err := s.check(ctx); err != nil {
		return nil, err
	}
	if len(ids) == 0 {
		return nil, nil
	}
	st := &statement{d: s.d}
	const fromRecords = "SELECT " + columns + " FROM behest_records WHERE kind = ?"
	switch {
	case s.d.logs(kind):
		st.getLogged(ids)
	case len(ids) == 1:
		st.add(fromRecords+" AND id = ?", wordText(kind), idText(ids[0]))
	case s.d == PostgreSQL:
		st.add(fromRecords+" AND id = ANY ", wordText(kind))
		st.list(ids, idText)
	default:
		st.add(fromRecords+" AND id IN ", wordText(kind))
		st.list(ids, idText)
	}
	found := make(map[string]store.Record, len(ids))
	if err := s.query(ctx, st, nil, func(r store.Record) { found[r.ID] = r }); err != nil {
		return nil, s.fail(ctx, err, "get %d of kind %q", len(ids), kind)
	}
	var out []store.Record
	given := make(map[string]bool)
	for _, id := range ids {
		r, ok := found[id]
		if !ok {
			continue
		}
		if given[id] {
			r.Data = slices.Clone(r.Data)
		}
		given[id] = true
		out = append(out, r)
	}
	return out, nil
}

// ready checks a query and gives it its limit.
func ready(q *store.Query) error {
	switch {
	case q.Kind == "":
		return fmt.Errorf("%w: a query needs a kind", store.ErrInvalid)
	case q.Limit < 0 || q.Limit > store.MaxPage:
		return fmt.Errorf("%w: limit %d, want at most %d", store.ErrInvalid, q.Limit, store.MaxPage)
	case q.Limit == 0:
		q.Limit = 100
	}
	return nil
}

// List implements [store.Store].
func (s session) List(ctx context.Context, q store.Query) ([]store.Record, error) {
	if err := s.check(ctx); err != nil {
		return nil, err
	}
	if err := ready(&q); err != nil {
		return nil, err
	}
	st := &statement{d: s.d}
	if s.d.logs(q.Kind) {
		st.listLogged(&q)
	} else {
		st.add("SELECT " + columns + " FROM behest_records")
		st.page(&q)
		st.add(" ORDER BY id"+direction(&q)+" LIMIT ?", q.Limit)
	}
	var out []store.Record
	if err := s.query(ctx, st, nil, func(r store.Record) { out = append(out, r) }); err != nil {
		return nil, s.fail(ctx, err, "list kind %q", q.Kind)
	}
	return out, nil
}

func checkClaim(q store.Query, until time.Time) error {
	if err := ready(&q); err != nil {
		return err
	}
	if isNever(q.DueBy) || isNever(until) {
		return fmt.Errorf("%w: a claim needs DueBy and a time until when", store.ErrInvalid)
	}
	return checkTime("until", until)
}

// Claim implements [store.Store].
func (s session) Claim(ctx context.Context, q store.Query, until time.Time) ([]store.Record, error) {
	if err := s.check(ctx); err != nil {
		return nil, err
	}
	if err := checkClaim(q, until); err != nil {
		return nil, err
	}
	_ = ready(&q)
	var out []store.Record
	was := make(map[string]time.Time) // the Due by which they come
	add := func(r store.Record, due time.Time) {
		out = append(out, r)
		was[r.ID] = due
	}
	st := &statement{d: s.d}
	if s.d == PostgreSQL {
		// SKIP LOCKED: what another claims, writes or checks at this moment is its own.
		st.add("WITH due AS MATERIALIZED (SELECT kind AS k, id AS i, due AS d FROM behest_records")
		st.where(&q)
		st.add(" ORDER BY due, id LIMIT ? FOR NO KEY UPDATE SKIP LOCKED)"+
			" UPDATE behest_records SET due = CASE WHEN not_after > ?::timestamptz"+
			// Not by dividing an interval: that of a day is not 24 hours everywhere. Before version 14 the seconds are a double.
			" THEN least(?::timestamptz, ?::timestamptz + ceil(round(extract(epoch FROM not_after - ?::timestamptz) * 1000000) / 2)::bigint * interval '1 microsecond')"+
			" ELSE ?::timestamptz END, version = version + 1 FROM due WHERE kind = k AND id = i RETURNING "+columns+", d",
			q.Limit, s.d.timeBound(q.DueBy), s.d.timeText(until), s.d.timeBound(q.DueBy), s.d.timeBound(q.DueBy), s.d.timeText(until))
		var due stamp
		if err := s.query(ctx, st, []any{&due}, func(r store.Record) { add(r, due.Time) }); err != nil {
			return nil, s.fail(ctx, err, "claim of kind %q", q.Kind)
		}
	} else {
		table := s.d.table(q.Kind)
		st.add("SELECT " + columns + ", rowid FROM " + table)
		st.where(&q)
		st.add(" ORDER BY due, id LIMIT ?", q.Limit)
		var row int64
		var rows []int64
		if err := s.query(ctx, st, []any{&row}, func(r store.Record) { add(r, r.Due); rows = append(rows, row) }); err != nil {
			return nil, s.fail(ctx, err, "claim of kind %q", q.Kind)
		}
		for i := range out {
			r := &out[i]
			end := until.UnixMicro()
			if left := r.NotAfter.UnixMicro() - q.DueBy.UnixMicro(); !isNever(r.NotAfter) && left > 0 {
				end = min(end, q.DueBy.UnixMicro()+(left+1)/2)
			}
			r.Version++
			r.Due = time.UnixMicro(end).UTC()
			_, err := s.x.ExecContext(ctx, "UPDATE "+table+" SET due = ?, version = version + 1 WHERE rowid = ?", s.d.timeText(r.Due), rows[i])
			if err != nil {
				return nil, s.fail(ctx, err, "claim of kind %q", q.Kind)
			}
		}
	}
	slices.SortFunc(out, func(a, b store.Record) int {
		if c := was[a.ID].Compare(was[b.ID]); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return out, nil
}

// Purge implements [store.Store].
func (s session) Purge(ctx context.Context, kind string, before time.Time, n int) (int, error) {
	if err := s.check(ctx); err != nil {
		return 0, err
	}
	if kind == "" || n < 1 || n > store.MaxPage {
		return 0, fmt.Errorf("%w: a purge is of one kind and of 1 to %d records", store.ErrInvalid, store.MaxPage)
	}
	if s.d.logs(kind) {
		removed, err := s.purgeLedger(ctx, s.d.timeBound(before), n)
		if err != nil {
			return 0, s.fail(ctx, err, "purge of kind %q", kind)
		}
		return removed, nil
	}
	query := "WITH old AS MATERIALIZED (SELECT kind AS k, id AS i FROM behest_records WHERE kind = $1 AND not_after < $2::timestamptz" +
		" ORDER BY not_after LIMIT $3 FOR UPDATE SKIP LOCKED) DELETE FROM behest_records USING old WHERE kind = k AND id = i"
	args := []any{wordText(kind), s.d.timeBound(before), n}
	if s.d == SQLite {
		query = "DELETE FROM behest_records WHERE kind = ? AND id IN (SELECT id FROM behest_records" +
			" WHERE kind = ? AND not_after IS NOT NULL AND not_after < ? ORDER BY not_after LIMIT ?)"
		args = append(args[:1], args...)
	}
	result, err := s.x.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, s.fail(ctx, err, "purge of kind %q", kind)
	}
	removed, err := result.RowsAffected()
	if err != nil {
		return 0, s.fail(ctx, err, "purge of kind %q", kind)
	}
	return int(removed), nil
}
