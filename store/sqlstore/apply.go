package sqlstore

import (
	"context"
	"fmt"
	"time"

	"github.com/behest-go/behest/store"
)

func checkApply(ctx context.Context, ops []store.Op) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return checkOps(ops)
}

func checkOps(ops []store.Op) error {
	if err := store.Validate(ops); err != nil {
		return err
	}
	for i := range ops {
		r := &ops[i].Record
		for _, t := range [...]time.Time{r.Due, r.NotAfter} {
			if !holds(t) {
				return checkTime(fmt.Sprintf("operation %d: a time", i), t)
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

// steps is an Apply on SQLite, in a transaction.
func (s session) steps(ctx context.Context, now time.Time, ops []store.Op) (store.Outcome, error) {
	c := new(Call)
	if err := c.Set(now, ops); err != nil {
		return store.Outcome{}, err
	}
	g := NewGroup(s.x)
	g.unsorted = 0 // its caller comes once
	if err := g.run(ctx, []*Call{c}); err != nil {
		return store.Outcome{}, err
	}
	return c.Outcome, c.Err
}
