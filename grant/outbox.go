package grant

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/behest-go/behest/store"
)

// outboxData is a delivery as it lies in the store: the code only sealed (P6).
type outboxData struct {
	Code  string `json:"code"`
	Tries int    `json:"tries,omitempty"`
}

func (o outboxData) encode() []byte {
	b, err := json.Marshal(o)
	if err != nil {
		panic(err) // a string and a number
	}
	return b
}

func (e *engine) openOutbox(r *store.Record) (Secret, int, error) {
	var o outboxData
	if err := json.Unmarshal(r.Data, &o); err != nil {
		return Secret{}, 0, fmt.Errorf("grant: record %s %s: %w", r.Kind, r.ID, err)
	}
	code, ok := unseal(e.keys.outbox, "", o.Code, nil)
	if !ok {
		return Secret{}, 0, fmt.Errorf("grant: record %s %s: sealed with a key that this engine does not have", r.Kind, r.ID)
	}
	return NewSecret(string(code)), o.Tries, nil
}

// Claim leases deliveries that are due, at most n (1 to 1000), for a while: until it is over, nobody else gets them.
// It returns their grants with the codes. With app only that app's, without those of notApps. Deliveries that came
// too late or were revoked are dropped on the way; those of suspended apps and triggers wait. When more than about
// 1000 of suspended triggers are in the way, what their apps have behind them is for the next Claim.
//
// A delivery that succeeded is ended with [Engine.Delivered], one that failed is put off with [Engine.Postpone]; one
// of which nothing is heard comes again when the lease is over. No lease takes more than half of what is left of the
// code's time, so that who dies with it leaves others time for a try: see Grant.Leased.
// Redeeming a code ends its delivery too. One damaged record keeps nobody from the others: they are returned beside
// the error.
func (e *Engine) Claim(ctx context.Context, by Delivery, app string, notApps []string, n int, lease time.Duration) ([]Grant, error) {
	switch {
	case by != Push && by != Poll:
		return nil, invalid("deliveries by %.80q are not claimed", by)
	case n < 1 || n > store.MaxPage:
		return nil, invalid("claiming %d deliveries, want 1 to %d", n, store.MaxPage)
	case lease <= 0:
		return nil, invalid("a lease of %v is over before it begins", lease)
	}
	now := e.now()
	set, err := e.settings(ctx, now)
	if err != nil {
		return nil, err
	}
	if a := set.apps[app]; a != nil && a.Suspended {
		return nil, nil
	}
	notApps = slices.Concat(notApps, set.idle)
	var out []Grant
	var faults []error
	// How many of suspended triggers it has gone through, and how many more than n it claims to get past them.
	passed, beyond := 0, 0
	// What is dropped makes room for more: a heap of deliveries that came too late keeps nobody from the others behind it.
	for more := true; more && len(out) < n && len(faults) == 0; {
		q := store.Query{Kind: string(by), App: app, NotApps: notApps, DueBy: now, Limit: min(n-len(out)+beyond, store.MaxPage)}
		due, err := e.store.Claim(ctx, q, now.Add(lease))
		if err != nil {
			faults = append(faults, err)
		}
		more = len(due) == q.Limit
		before, live := passed, false
		for i, c := range e.claimed(ctx, due, now) {
			var err error
			switch {
			case c.err != nil:
				err = c.err
			case c.Grant == nil:
				err = e.drop(ctx, due[i])
			case c.State == "suspended": // comes again when the lease is over
				// Other apps do not wait for the rest, which the next Claim goes through.
				if passed++; passed >= maxPassed && !slices.Contains(notApps, c.App) {
					notApps = append(notApps, c.App)
				}
			case len(out) == n:
				err = e.release(ctx, due[i], now)
			default:
				live = true
				c.outbox, c.Leased = due[i], due[i].Due
				if c.Code, c.Tries, err = e.openOutbox(&due[i]); err == nil {
					out = append(out, *c.Grant)
				}
			}
			if err != nil {
				faults = append(faults, err)
			}
		}
		if beyond = min(beyond+passed-before, maxBeyond); live || passed >= maxPassed {
			beyond = 0
		}
	}
	return out, errors.Join(faults...)
}

const (
	maxPassed = 1000 // by one Claim, or a page more, before it leaves out the apps that it meets more of
	maxBeyond = 100  // each of them may have to be released, by a write
)

// A claimed delivery has no Grant if it has become pointless.
type claimed struct {
	*Grant
	err error
}

// claimed looks for the grants of all these deliveries at once.
func (e *Engine) claimed(ctx context.Context, due []store.Record, now time.Time) []claimed {
	out, at := make([]claimed, len(due)), make(map[string]int, len(due))
	var ids []string
	for i, r := range due {
		_, name, _ := strings.Cut(r.ID, ".")
		if _, ok := appOf(name); ok && now.Before(r.NotAfter) {
			ids = append(ids, r.ID)
			at[r.ID] = i
		}
	}
	if len(ids) == 0 {
		return out
	}
	var grants []Grant
	var of []int
	found, err := e.store.Get(ctx, kindGrant, ids...)
	for i := range found {
		j := at[found[i].ID]
		if g, err := readGrant(&found[i]); err != nil {
			out[j].err = err
		} else {
			grants, of = append(grants, *g), append(of, j)
		}
	}
	if err == nil {
		err = e.markRevoked(ctx, grants)
	}
	switch {
	case err != nil && len(due) == 1:
		out[0].err = err
	case err != nil: // if it is one record's, that keeps nobody from the others
		for i := range due {
			out[i] = e.claimed(ctx, due[i:i+1], now)[0]
		}
	default:
		for i := range grants {
			if g := &grants[i]; g.State == "issued" || g.State == "suspended" {
				out[of[i]].Grant = g
			}
		}
	}
	return out
}

// release makes a delivery that was claimed due again at once.
func (e *Engine) release(ctx context.Context, r store.Record, now time.Time) error {
	r.Due = now
	_, err := e.store.Apply(ctx, now, []store.Op{store.Put(r)})
	return err
}

func (e *Engine) drop(ctx context.Context, r store.Record) error {
	_, err := e.store.Apply(ctx, e.now(), []store.Op{store.Delete(r.Kind, r.ID, r.Version)})
	return err
}

// Delivered ends the delivery of a grant that Claim returned. If the lease was over and another has it now, nothing happens.
func (e *Engine) Delivered(ctx context.Context, g Grant) error {
	if g.outbox.ID == "" {
		return invalid("the grant does not come from Claim")
	}
	return e.drop(ctx, g.outbox)
}

// Postpone makes the delivery of a grant that Claim returned due again at that time, with one more try on record. If
// the lease was over and another has it now, or the code was redeemed, nothing happens.
func (e *Engine) Postpone(ctx context.Context, g Grant, until time.Time) error {
	if g.outbox.ID == "" {
		return invalid("the grant does not come from Claim")
	}
	if until.IsZero() {
		return invalid("a delivery that is put off needs a time until when")
	}
	var o outboxData
	if err := json.Unmarshal(g.outbox.Data, &o); err != nil {
		return fmt.Errorf("grant: record %s %s: %w", g.outbox.Kind, g.outbox.ID, err)
	}
	o.Tries++
	r := g.outbox
	r.Due, r.Data = until, o.encode()
	_, err := e.store.Apply(ctx, e.now(), []store.Op{store.Put(r)})
	return err
}

// Purge removes what has been over for long enough (see Retention in the package comment): at most n records, 1 to
// 1000, and returns how many. Call it again while it removes n, with a pause between, so that a backlog keeps nobody
// waiting. A kind that fails keeps no other from its turn: the errors are joined. It stops when ctx is done.
func (e *Engine) Purge(ctx context.Context, n int) (int, error) {
	if n < 1 || n > store.MaxPage {
		return 0, invalid("purging %d records, want 1 to %d", n, store.MaxPage)
	}
	now, total := e.now(), 0
	var faults []error
	for _, k := range []struct {
		kind string
		keep time.Duration
	}{
		{kindToken, keepToken}, {kindGrant, keepGrant}, {kindEvent, 0}, {kindRevocation, keepGrant}, {kindConsent, 0}, {kindWindow, 0}, {kindOnce, keepOnce}, {kindProof, keepProof},
		{string(Push), 0}, {string(Poll), 0}, {string(Redirect), 0}, {kindLedger, e.keep},
	} {
		if total == n {
			break
		}
		if err := ctx.Err(); err != nil {
			faults = append(faults, err)
			break
		}
		removed, err := e.store.Purge(ctx, k.kind, now.Add(-k.keep), n-total)
		if total += removed; err != nil {
			faults = append(faults, fmt.Errorf("grant: purging %s: %w", k.kind, err))
		}
	}
	return total, errors.Join(faults...)
}
