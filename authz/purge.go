package authz

import (
	"context"
	"errors"
	"time"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/store"
)

const (
	purgeEvery   = time.Minute
	purgeStep    = 500                   // records at once: measured 1 ms in memory, 3 on SQLite, 9 on PostgreSQL and Redis
	purgePause   = 25 * time.Millisecond // between steps, for everybody else
	purgeLease   = 30 * time.Second      // after which another takes over from a server that died
	purgeTimeout = 10 * time.Second      // of a step: less than what is left of the lease when one begins
)

// A purger removes what has been over for long enough. Of all that share a store one does it at a time: who holds the
// lease on the one record of this kind, whose Due is when the next round begins.
type purger struct {
	engine *grant.Engine
	store  store.Store
	now    func() time.Time
}

const kindPurge = "purge"

// run is one round, unless another is at it or was a moment ago.
func (p *purger) run(ctx context.Context) error {
	began := p.now()
	lease, err := p.claim(ctx, began)
	if err != nil || lease == nil {
		return err
	}
	for {
		removed, err := p.step(ctx)
		if err != nil && removed == 0 {
			return err // whoever finds the lease over goes on
		}
		if removed < purgeStep {
			// A tenth less, so that it is due by the next tick.
			return errors.Join(err, p.keep(ctx, lease, began.Add(purgeEvery*9/10)))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(purgePause):
		}
		if now := p.now(); lease.Due.Sub(now) < purgeLease/2 {
			if err := p.keep(ctx, lease, now.Add(purgeLease)); err != nil {
				return err
			}
		}
	}
}

// farAhead is a time for the next round that only a clock could have set which runs ahead of this one: longer than a
// lease and than the pause between rounds, and two nodes' clocks apart.
const farAhead = 10 * time.Minute

// claim returns the lease, or nil if it is not to be had.
func (p *purger) claim(ctx context.Context, now time.Time) (*store.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, purgeTimeout)
	defer cancel()
	for {
		got, err := p.store.Claim(ctx, store.Query{Kind: kindPurge, DueBy: now, Limit: 1}, now.Add(purgeLease))
		if err != nil {
			return nil, err
		}
		if len(got) == 1 {
			return &got[0], nil
		}
		// Nobody has purged here yet, or another is at it, or was a moment ago: then the record is there.
		there, err := p.store.Get(ctx, kindPurge, kindPurge)
		if err != nil || len(there) == 1 && there[0].Due.Sub(now) < farAhead {
			return nil, err
		}
		due := store.Record{Kind: kindPurge, ID: kindPurge, Due: now}
		if len(there) == 1 { // nobody waits until a clock that ran ahead is right
			due.Version = there[0].Version
		}
		out, err := p.store.Apply(ctx, now, []store.Op{store.Put(due)})
		if err != nil || !out.Applied() {
			return nil, err
		}
	}
}

var errPurgeLost = errors.New("authz: another server purges: this one took longer than its lease")

// keep puts the end of the lease off, or gives it up with the time of the next round.
func (p *purger) keep(ctx context.Context, lease *store.Record, until time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, purgeTimeout)
	defer cancel()
	lease.Due = until
	out, err := p.store.Apply(ctx, p.now(), []store.Op{store.Put(*lease)})
	if err != nil {
		return err
	}
	if !out.Applied() {
		return errPurgeLost
	}
	lease.Version++
	return nil
}

// step removes at most purgeStep records.
func (p *purger) step(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, purgeTimeout)
	defer cancel()
	removed, err := p.engine.Purge(ctx, purgeStep)
	for _, over := range []struct {
		kind string
		keep time.Duration
	}{
		{kindAccess, 0},
		{kindSignIn, 0},
		{kindAssertion, time.Minute}, // longer than the clocks of two servers differ: as long as an assertion is good, it is known
	} {
		if removed < purgeStep {
			more, err2 := p.store.Purge(ctx, over.kind, p.now().Add(-over.keep), purgeStep-removed)
			removed += more
			err = errors.Join(err, err2)
		}
	}
	return removed, err
}
