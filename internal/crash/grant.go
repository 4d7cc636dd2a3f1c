package crash

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

const (
	app         = "bookbot"
	grantedUses = 3
)

var (
	domain = scope.MustDomain("group:42")
	wanted = scope.MustParse("group:42/message.write")
)

// Granting is the life of a grant through [grant.Engine], for an account of its own: issued, redeemed, used to its end or, every other time, used once and revoked. It says
// "issued ID CODE", "redeemed ID TOKEN", "used ID" and "revoked ID". Its audit spends what is left.
func Granting() Job {
	return Job{name: "granting", prepare: func(context.Context, store.Store) error { return nil }, begin: grants, audit: auditGranting}
}

func engine(st store.Store) (*grant.Engine, error) {
	return grant.NewEngine(grant.Config{
		Store: st, Key: grant.NewSecret(strings.Repeat("k", 32)), Permit: func(context.Context, grant.Access) error { return nil }, Now: func() time.Time { return now },
		Apps:     []grant.App{{ID: app, Actions: []string{wanted.Action()}}},
		Triggers: []grant.Trigger{{App: app, On: grant.Mention, In: "group:*", Allow: []string{wanted.Action()}, Uses: grantedUses}},
	})
}

func event(id string) grant.Event {
	return grant.Event{ID: id, Operation: grant.Mention, Account: "account-" + id, App: app, Domain: domain}
}

func revoked(id string) bool { return id[len(id)-1]%2 == 1 }

func grants(st store.Store) (Work, error) {
	e, err := engine(st)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, id string, say func(string)) error {
		ev := event(id)
		issued, err := e.Emit(ctx, ev)
		if err != nil {
			return err
		}
		g := issued[0]
		say("issued " + id + " " + g.Code.Reveal())
		_, token, err := e.Redeem(ctx, app, g.Code)
		if err != nil {
			return err
		}
		say("redeemed " + id + " " + token.Reveal())
		for n := range grantedUses {
			if n == 1 && revoked(id) {
				if err := e.Revoke(ctx, ev.Account, g.ID); err != nil {
					return err
				}
				say("revoked " + id)
				return nil
			}
			if _, err := e.Use(ctx, token.Reveal(), wanted); err != nil {
				return err
			}
			say("used " + id)
		}
		return nil
	}, nil
}

// A life is what was said of one grant.
type life struct {
	code, token grant.Secret
	said        map[string]int // how often by what
}

func lives(said []string) (map[string]*life, error) {
	all := make(map[string]*life)
	for _, line := range said {
		words := strings.Fields(line)
		if len(words) < 2 {
			return nil, fmt.Errorf("%q was said", line)
		}
		l := all[words[1]]
		if l == nil {
			l = &life{said: make(map[string]int)}
			all[words[1]] = l
		}
		l.said[words[0]]++
		switch {
		case words[0] == "issued" && len(words) == 3:
			l.code = grant.NewSecret(words[2])
		case words[0] == "redeemed" && len(words) == 3:
			l.token = grant.NewSecret(words[2])
		case len(words) == 2 && (words[0] == "used" || words[0] == "revoked"):
		default:
			return nil, fmt.Errorf("%q was said", line)
		}
	}
	return all, nil
}

func auditGranting(ctx context.Context, st store.Store, said []string, unanswered int) (done []string, err error) {
	all, err := lives(said)
	if err != nil {
		return nil, err
	}
	e, err := engine(st)
	if err != nil {
		return nil, err
	}
	// Each is looked into by itself: many at a time, for they wait for the disk.
	var (
		group  sync.WaitGroup
		mu     sync.Mutex
		unsaid int
		faults []error
	)
	ids := slices.Collect(maps.Keys(all))
	for part := range slices.Chunk(ids, len(ids)/32+1) {
		group.Go(func() {
			for _, id := range part {
				entries, err := all[id].audit(ctx, e, id)
				mu.Lock()
				if err != nil {
					faults = append(faults, fmt.Errorf("%s: %w", id, err))
				}
				done = append(done, entries...)
				unsaid += len(entries)
				for _, n := range all[id].said {
					unsaid -= n
				}
				mu.Unlock()
			}
		})
	}
	group.Wait()
	switch {
	case len(faults) > 0:
		return nil, errors.Join(faults[:min(10, len(faults))]...)
	case unsaid > unanswered:
		return nil, fmt.Errorf("%d entries are in the ledger and were not acknowledged, and at most %d had no answer", unsaid, unanswered)
	}
	slices.Sort(done)
	return done, nil
}

// audit returns the IDs of the ledger entries that were there before it did anything.
func (l *life) audit(ctx context.Context, e *grant.Engine, id string) (ids []string, err error) {
	ev := event(id)
	entries, err := e.Ledger(ctx, ev.Account, "", 0)
	if err != nil {
		return nil, err
	}
	there := make(map[string]int)
	for _, entry := range entries {
		there[entry.What]++
		ids = append(ids, entry.ID)
	}
	for _, what := range []string{"issued", "redeemed", "used", "revoked"} {
		if there[what] < l.said[what] {
			return nil, fmt.Errorf("%q was acknowledged %d times and is %d times in the ledger", what, l.said[what], there[what])
		}
	}
	if there["issued"] != 1 || there["redeemed"] > 1 || there["revoked"] > 1 || there["used"] > grantedUses {
		return nil, fmt.Errorf("too much is in the ledger: %v", there)
	}
	// The caller, having heard nothing, tries again.
	again, err := e.Emit(ctx, ev)
	if err != nil {
		return nil, fmt.Errorf("emitted again: %w", err)
	}
	if len(again) != 1 {
		return nil, fmt.Errorf("emitted again, it makes %d grants", len(again))
	}
	_, token, err := e.Redeem(ctx, app, l.code)
	switch {
	case there["redeemed"] > 0 && !errors.Is(err, grant.ErrUsedUp) && !errors.Is(err, grant.ErrRevoked):
		return nil, fmt.Errorf("a code that was redeemed before: %v", err)
	case there["redeemed"] == 0 && err != nil:
		return nil, fmt.Errorf("a code that was not redeemed: %w", err)
	case there["redeemed"] == 0:
		l.token = token
	}
	if l.token.IsZero() { // redeemed, and nobody knows the token
		return ids, nil
	}
	spent := there["used"]
	for {
		if _, err = e.Use(ctx, l.token.Reveal(), wanted); err != nil {
			break
		}
		if spent++; spent > grantedUses || there["revoked"] > 0 {
			return nil, fmt.Errorf("a use too many: %v before, now %d used", there, spent)
		}
	}
	switch {
	case there["revoked"] > 0 && errors.Is(err, grant.ErrRevoked):
	case there["revoked"] == 0 && spent == grantedUses && errors.Is(err, grant.ErrUsedUp):
	default:
		return nil, fmt.Errorf("%v before, now %d used, and then: %w", there, spent, err)
	}
	return ids, nil
}
