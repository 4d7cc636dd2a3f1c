package sqlstore

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/behest-go/behest/store"
)

func checkApply(ctx context.Context, ops []store.Op) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := store.Validate(ops); err != nil {
		return err
	}
	for i := range ops {
		r := &ops[i].Record
		for _, t := range [...]time.Time{r.Due, r.NotAfter} {
			if err := checkTime(fmt.Sprintf("operation %d: a time", i), t); err != nil {
				return err
			}
		}
	}
	return nil
}

// Apply implements [store.Store].
func (s session) Apply(ctx context.Context, now time.Time, ops []store.Op) (out store.Outcome, err error) {
	if err := s.check(ctx); err != nil {
		return store.Outcome{}, err
	}
	if err := checkApply(ctx, ops); err != nil {
		return store.Outcome{}, err
	}
	if s.d == PostgreSQL {
		c := newCall(now, ops)
		var a answer
		if a, err = s.call(ctx, &c); err == nil {
			out, err = a.outcome(ops)
		}
	} else {
		out, err = s.steps(ctx, now, ops)
	}
	if err != nil {
		return store.Outcome{}, s.failApply(ctx, err, ops)
	}
	return out, nil
}

func (s session) failApply(ctx context.Context, err error, ops []store.Op) error {
	return s.fail(ctx, err, "apply %d operations in aggregate %q", len(ops), store.Aggregate(ops[0].Record.ID))
}

// row is what of a record decides.
type row struct {
	version, left int64
	notAfter      stamp
}

// steps is an Apply on SQLite, in a transaction: one look at all records, then what is to be written.
func (s session) steps(ctx context.Context, now time.Time, ops []store.Op) (out store.Outcome, err error) {
	there, err := s.look(ctx, ops)
	if err != nil {
		return out, err
	}
	spent := false
	for i := range ops {
		reason, left := decide(&ops[i], there[i], now)
		if reason != 0 {
			out = store.Outcome{Reason: reason, Op: i}
			if r := there[i]; r != nil {
				out.Version, out.Left = uint64(r.version), r.left
			}
			return out, nil
		}
		if ops[i].Verb == store.VerbSpend && !spent {
			spent, out.Left = true, left
		}
	}
	for i := range ops {
		if err := s.write(ctx, &ops[i], there[i] != nil); err != nil {
			return store.Outcome{}, fmt.Errorf("operation %d: %w", i, err)
		}
	}
	return out, nil
}

// looks are the statements that look at so many records.
var looks = func() (all [store.MaxBatch + 1]string) {
	for n := 1; n <= store.MaxBatch; n++ {
		var parts []string
		for i := range n {
			parts = append(parts, fmt.Sprintf("SELECT %d, version, left_uses, not_after FROM behest_records WHERE kind = ? AND id = ?", i))
		}
		all[n] = strings.Join(parts, " UNION ALL ")
	}
	return all
}()

// look returns the records that ops are on; nil for what is not there.
func (s session) look(ctx context.Context, ops []store.Op) (there []*row, err error) {
	args := make([]any, 0, 2*len(ops))
	for i := range ops {
		args = append(args, wordText(ops[i].Record.Kind), idText(ops[i].Record.ID))
	}
	rows, err := s.x.QueryContext(ctx, looks[len(ops)], args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	there = make([]*row, len(ops))
	for rows.Next() {
		var i int
		r := new(row)
		var version, left, notAfter any
		if err := rows.Scan(&i, &version, &left, &notAfter); err != nil {
			return nil, err
		}
		if err := r.read(version, left, notAfter); err != nil {
			return nil, corrupt(ops[i].Record.Kind, ops[i].Record.ID, err)
		}
		there[i] = r
	}
	return there, rows.Err()
}

func (r *row) read(version, left, notAfter any) error {
	var ok [2]bool
	r.version, ok[0] = version.(int64)
	r.left, ok[1] = left.(int64)
	if !ok[0] || !ok[1] {
		return fmt.Errorf("its version is %v and its left_uses %v", version, left)
	}
	if err := r.notAfter.Scan(notAfter); err != nil {
		return fmt.Errorf("its not_after: %w", err)
	}
	return sane(r.version, r.left)
}

// decide says whether op may go ahead on what is there, and what a Spend leaves behind.
func decide(op *store.Op, r *row, now time.Time) (refused store.Reason, left int64) {
	if op.Verb != store.VerbSpend {
		var version uint64
		if r != nil {
			version = uint64(r.version)
		}
		want := op.Record.Version
		switch {
		case want == store.AnyVersion && op.Verb != store.VerbCheck:
		case want != version, op.Verb == store.VerbDelete && r == nil:
			return store.Conflict, 0
		}
		return 0, 0
	}
	var notAfter time.Time
	switch {
	case r != nil:
		left, notAfter = r.left, r.notAfter.Time
	case op.Init:
		left, notAfter = op.Record.Left, op.Record.NotAfter
	default:
		return store.Missing, 0
	}
	switch {
	case !isNever(notAfter) && now.UnixMicro() >= notAfter.UnixMicro():
		return store.Expired, left
	case left == 0 || left < op.N:
		return store.Exhausted, left
	}
	return 0, left - op.N
}

func (s session) write(ctx context.Context, op *store.Op, there bool) (err error) {
	r := &op.Record
	kind, id := wordText(r.Kind), idText(r.ID)
	switch {
	case op.Verb == store.VerbCheck, op.Verb == store.VerbDelete && !there, op.Verb == store.VerbSpend && there && op.N == 0:
	case op.Verb == store.VerbDelete:
		_, err = s.x.ExecContext(ctx, "DELETE FROM behest_records WHERE kind = ? AND id = ?", kind, id)
	case op.Verb == store.VerbSpend && there:
		_, err = s.x.ExecContext(ctx, "UPDATE behest_records SET left_uses = left_uses - ? WHERE kind = ? AND id = ?", op.N, kind, id)
	case there:
		_, err = s.x.ExecContext(ctx, "UPDATE behest_records SET version = version + 1, owner = ?, app = ?, due = ?, not_after = ?, data = ? WHERE kind = ? AND id = ?",
			wordText(r.Owner), wordText(r.App), s.d.timeArg(r.Due), s.d.timeArg(r.NotAfter), blob(r.Data), kind, id)
	default:
		left := r.Left
		if op.Verb == store.VerbSpend {
			left -= op.N
		}
		_, err = s.x.ExecContext(ctx, "INSERT INTO behest_records ("+columns+") VALUES (?, ?, 1, ?, ?, ?, ?, ?, ?)",
			kind, id, wordText(r.Owner), wordText(r.App), s.d.timeArg(r.Due), s.d.timeArg(r.NotAfter), left, blob(r.Data))
	}
	return err
}

// blob is data as a value that is never NULL.
func blob(data []byte) []byte {
	if data == nil {
		return []byte{}
	}
	return data
}
