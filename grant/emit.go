package grant

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

// Emit says that an operation happened. Each trigger that it matches makes one grant: the same one however often, and
// on however many nodes, the event is emitted (P2). An event that matches nothing, as most do, gives nil and nil at
// almost no price.
//
// The grants are returned also when there is an error; the error joins what kept others from being made: [ErrInvalid]
// for a fault in the event, such as one that was seen before with other content, [ErrDenied] when the account may do
// nothing of what a trigger allows or has said no to the app (recorded as a refusal), [ErrLimited], or what the store
// or Permit said. After an error of the store, emit again: nothing is issued twice.
func (e *Engine) Emit(ctx context.Context, ev Event) ([]Grant, error) {
	if ev.Domain.IsZero() || ev.Operation == "" {
		return nil, invalid("an event needs an operation and a domain")
	}
	if ev.App == "" && ev.Operation.namesApp() {
		return nil, invalid("a %s names an app", ev.Operation)
	}
	set, err := e.settingsNow(ctx)
	if err != nil {
		return nil, err
	}
	var buf [4]*trigger
	found := set.triggers.match(&ev, buf[:0])
	if len(found) == 0 {
		return nil, nil
	}
	return e.emit(ctx, ev, found)
}

// An emission is an event on its way through the triggers that it matches.
type emission struct {
	event Event
	now   time.Time
	print [sha256.Size]byte
	// known is that the record of the event is in the store. Nothing replaces it, so its version is 1.
	known bool
}

func (e *Engine) emit(ctx context.Context, ev Event, found []*trigger) ([]Grant, error) {
	now := e.now()
	if err := ev.check(now); err != nil {
		return nil, err
	}
	if ev.At.IsZero() {
		ev.At = now
	}
	ev.At = micros(ev.At.UnixMicro())
	em := &emission{event: ev, now: now, print: ev.fingerprint()}
	// Permit is asked for all of them before the first statement: within a transaction, that may hold what Permit wants.
	asked, faults := make([]*Grant, len(found)), make([]error, len(found))
	some := false
	for i, t := range found {
		g, err := e.ask(ctx, em, t)
		if err != nil {
			faults[i] = fmt.Errorf("trigger %s: %w", t.ID, err)
			continue
		}
		asked[i], some = g, true
	}
	if !some {
		return nil, errors.Join(faults...)
	}
	depth, err := e.depth(ctx, &ev)
	if err != nil {
		return nil, err
	}
	var grants []Grant
	for i, t := range found {
		if faults[i] != nil {
			continue
		}
		asked[i].depth = depth
		g, err := e.issue(ctx, em, t, asked[i])
		if err != nil {
			faults[i] = fmt.Errorf("trigger %s: %w", t.ID, err)
			continue
		}
		grants = append(grants, *g)
	}
	return grants, errors.Join(faults...)
}

// depth is how many grants stand behind the event, for triggers that chain.
func (e *Engine) depth(ctx context.Context, ev *Event) (int, error) {
	if ev.By == "" {
		return 0, nil
	}
	g, _, err := e.getGrant(ctx, e.aggregate(ev.Account)+"."+ev.By)
	if err != nil {
		return 0, fmt.Errorf("event by %.80q: %w", ev.By, err)
	}
	if g.depth+1 > maxDepth {
		return 0, fmt.Errorf("%w: the event is %d grants deep, at most %d", ErrLimited, g.depth+1, maxDepth)
	}
	return g.depth + 1, nil
}

// ask makes the grant, as far as it goes without the store: with what the account itself may.
func (e *Engine) ask(ctx context.Context, em *emission, t *trigger) (g *Grant, err error) {
	ev, now := &em.event, em.now
	domain := ev.Domain
	if t.At != "" {
		var ok bool
		if domain, ok = ev.Domain.Ancestor(t.At); !ok {
			return nil, invalid("at: the event's domain %s is in no %s", ev.Domain, t.At)
		}
	}
	g = &Grant{
		ID:      grantID(name16(e.keys.aggregate, "grant", string(ev.Operation), ev.ID, ev.Account, t.ID), t.App),
		Account: ev.Account, App: t.App, Trigger: t.ID, Domain: domain, Event: *ev, IssuedAt: now,
		For: t.For, Uses: t.Uses, Deliver: t.Deliver, redeemWithin: t.RedeemWithin, consent: t.Consent, Stateless: t.Stateless,
		delegates: t.Delegates, deeper: max(t.DeriveDepth, 0),
	}
	if g.Actions, err = e.may(ctx, g, t.Allow); err != nil {
		if errors.Is(err, ErrDenied) {
			e.refuseIssue(ctx, g, "denied")
		}
		return nil, err
	}
	return g, nil
}

func (e *Engine) refuseIssue(ctx context.Context, g *Grant, reason string) {
	e.refuse(ctx, g.IssuedAt, refusal{g.Account, g.App, "", g.Domain.String(), reason})
}

func (e *Engine) issue(ctx context.Context, em *emission, t *trigger, g *Grant) (*Grant, error) {
	ev, now := &em.event, em.now
	at := e.place(g.Account, g.App, g.Domain)
	all, here := at.aggregate+"."+hereAll, at.aggregate+"."+at.here
	cause := at.aggregate + ".e" + name16(e.keys.aggregate, "event", string(ev.Operation), ev.ID)
	for range 8 { // each turn learns something from the store's answer; three would do without other writers
		g.revisions = [2]uint64{e.versions.get(all), e.versions.get(here)}
		ops := append(make([]store.Op, 0, 9),
			store.Check(kindRevocation, all, g.revisions[0]),
			store.Check(kindRevocation, here, g.revisions[1]))
		if em.known {
			ops = append(ops, store.Check(kindEvent, cause, 1))
		} else {
			ops = append(ops, store.Put(store.Record{Kind: kindEvent, ID: cause, Owner: ev.Account,
				NotAfter: now.Add(maxEventAge + keepGrant), Data: em.print[:]}))
		}
		allowed := g.consent == Implied
		if g.consent == Once {
			c, err := e.remembered(ctx, g, at)
			if err != nil {
				return nil, err
			}
			if c.answered && !c.Allow {
				if ok, err := e.current(ctx, all, here, g.revisions); err != nil {
					return nil, err
				} else if !ok {
					continue
				}
				e.refuseIssue(ctx, g, "denied")
				return nil, fmt.Errorf("%w: %s has said no to %s here", ErrDenied, g.Account, g.App)
			}
			allowed = c.answered
			ops = append(ops, store.Check(kindConsent, c.id, c.version))
		}
		entry := Entry{At: now, Account: g.Account, App: g.App, Grant: g.ID, Scope: g.Scope().String()}
		if allowed {
			ops = append(ops, e.ready(g, at.aggregate, now))
			entry.What = "issued"
		} else {
			// An earlier turn may have made a code.
			g.State, entry.What, g.Code, g.codeHash, g.RedeemBy = "pending", "pending", Secret{}, "", time.Time{}
		}
		r, err := g.record(at.aggregate, 0, g.end(now))
		if err != nil {
			return nil, invalid("%v", err)
		}
		ops = append(ops, store.Put(r), e.ledgerOp(at.aggregate, &entry))
		if t.PerMinute > 0 {
			minute := now.Truncate(time.Minute)
			ops = append(ops, store.Spend(kindWindow,
				at.aggregate+"."+name16(e.keys.aggregate, "window", t.ID)+"-"+minute.UTC().Format("200601021504"), 1,
				&store.Record{Owner: g.Account, App: g.App, Left: int64(t.PerMinute), NotAfter: minute.Add(time.Minute)}))
		}
		out, err := e.store.Apply(ctx, now, ops)
		if err != nil {
			return nil, err
		}
		if out.Applied() {
			em.known = true
			e.tell(ctx, &entry)
			return g, nil
		}
		switch there := &ops[out.Op].Record; there.Kind {
		case kindRevocation:
			e.versions.learn(there.ID, out.Version)
		case kindEvent: // emitted before, or forgotten just now
			if em.known, err = e.knows(ctx, em, cause); err != nil {
				return nil, err
			}
		case kindConsent: // answered just now
		case kindWindow:
			e.refuseIssue(ctx, g, "limited")
			return nil, fmt.Errorf("%w: %d grants a minute for one account", ErrLimited, t.PerMinute)
		default: // the grant, or its place in the outbox, is there
			if g, err := e.issuedBefore(ctx, r.ID, now); g != nil || err != nil {
				return g, err
			}
		}
	}
	return nil, errors.New("grant: the store changes faster than a grant can be issued")
}

// may is the intersection with the account's own rights (P4). None left is ErrDenied.
func (e *engine) may(ctx context.Context, g *Grant, actions []string) ([]string, error) {
	var out []string
	for _, action := range actions {
		s, err := scope.New(g.Domain, action)
		if err != nil {
			return nil, invalid("%v", err)
		}
		switch err := e.permit(ctx, Access{Account: g.Account, App: g.App, Scope: s}); {
		case err == nil:
			out = append(out, action)
		case !errors.Is(err, ErrDenied):
			return nil, err
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: %s may do nothing of what would be granted in %s", ErrDenied, g.Account, g.Domain)
	}
	return out, nil
}

// knows looks for the record of the event. One of other content is errConflict.
func (e *Engine) knows(ctx context.Context, em *emission, id string) (bool, error) {
	found, err := e.store.Get(ctx, kindEvent, id)
	if err != nil || len(found) == 0 {
		return false, err
	}
	if string(found[0].Data) != string(em.print[:]) {
		return false, fmt.Errorf("%w: %s %.80q", errConflict, em.event.Operation, em.event.ID)
	}
	return true, nil
}

// current reports whether these are the revisions, and learns them if not.
func (e *Engine) current(ctx context.Context, all, here string, revisions [2]uint64) (bool, error) {
	found, err := e.store.Get(ctx, kindRevocation, all, here)
	if err != nil {
		return false, err
	}
	there := map[string]uint64{}
	for _, r := range found {
		there[r.ID] = r.Version
	}
	e.versions.learn(all, there[all])
	e.versions.learn(here, there[here])
	return revisions == [2]uint64{there[all], there[here]}, nil
}

// end is when the grant is over if nothing more happens to it.
func (g *Grant) end(now time.Time) time.Time {
	switch {
	case !g.NotAfter.IsZero():
		return g.NotAfter
	case !g.RedeemBy.IsZero():
		return g.RedeemBy
	}
	return now.Add(pendingFor)
}

// ready gives the grant its code and returns the outbox entry, where the code lies sealed until it is redeemed or too late.
func (e *engine) ready(g *Grant, aggregate string, now time.Time) store.Op {
	c := sealedCode{account: g.Account, grant: g.ID, secret: newSecret()}
	g.Code = NewSecret(e.keys.sealCode(c))
	g.codeHash = hashOf(c.secret[:])
	g.State, g.RedeemBy = "issued", now.Add(g.redeemWithin)
	r := store.Record{Kind: string(g.Deliver), ID: aggregate + "." + g.ID, Owner: g.Account, App: g.App, NotAfter: g.RedeemBy,
		Data: outboxData{Code: seal(e.keys.outbox, "", []byte(g.Code.Reveal()))}.encode()}
	if g.Deliver != Redirect {
		r.Due = now
	}
	return store.Put(r)
}

// issuedBefore returns the grant that an earlier Emit of the event made, with its code if that is still waiting.
func (e *Engine) issuedBefore(ctx context.Context, id string, now time.Time) (*Grant, error) {
	g, _, err := e.getGrant(ctx, id)
	if errors.Is(err, ErrUnknown) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	g.age(now)
	one := []Grant{*g}
	if err := e.markRevoked(ctx, one); err != nil {
		return nil, err
	}
	if g = &one[0]; g.State != "issued" {
		return g, nil
	}
	box, err := e.store.Get(ctx, string(g.Deliver), id)
	if err != nil {
		return nil, err
	}
	if len(box) == 1 {
		g.Code, _, err = e.openOutbox(&box[0])
	}
	return g, err
}

// age sets the state of a grant whose time is over.
func (g *Grant) age(now time.Time) {
	switch {
	case g.State == "issued" && !now.Before(g.RedeemBy),
		g.State == "redeemed" && !now.Before(g.NotAfter),
		g.State == "pending" && !now.Before(g.IssuedAt.Add(pendingFor)):
		g.State = "expired"
	}
}

// consentData is what an account once answered. It holds only for the revisions it was given under: revoking forgets it.
type consentData struct {
	Allow     bool      `json:"allow"`
	Revisions [2]uint64 `json:"revisions"`
}

func (e *engine) consentID(g *Grant, aggregate string) string {
	return aggregate + "." + name16(e.keys.aggregate, append([]string{"consent", g.App, g.Domain.String()}, g.Actions...)...)
}

// A memory is what is remembered of an account's answers to one question.
type memory struct {
	consentData
	id       string
	version  uint64
	answered bool // under the grant's revisions, and not too long ago
}

func (e *Engine) remembered(ctx context.Context, g *Grant, at placeNames) (memory, error) {
	m := memory{id: e.consentID(g, at.aggregate)}
	found, err := e.store.Get(ctx, kindConsent, m.id)
	if err != nil || len(found) == 0 {
		return m, err
	}
	if err := json.Unmarshal(found[0].Data, &m.consentData); err != nil {
		return m, fmt.Errorf("grant: record %s %s: %w", kindConsent, m.id, err)
	}
	m.version = found[0].Version
	m.answered = m.Revisions == g.revisions && g.IssuedAt.Before(found[0].NotAfter)
	return m, nil
}

// Decide answers for a pending grant. Who decides must be the account that the grant is for: any other finds no such
// grant ([ErrUnknown]). Allowed, the grant gets its code and its clocks start now; Permit is asked as at issue, and
// narrows it or says no ([ErrDenied]; the grant waits on). The answer to a trigger with Consent Once is remembered
// for 90 days, a "no" as well as a "yes", until the account revokes. A grant that no longer waits is [ErrInvalid],
// one that waited longer than a day [ErrExpired], one that was revoked, or whose app or trigger is suspended, [ErrRevoked].
func (e *Engine) Decide(ctx context.Context, account, grant string, allow bool) (*Grant, error) {
	now := e.now()
	aggregate := e.aggregate(account)
	g, version, err := e.getGrant(ctx, aggregate+"."+grant)
	if err != nil {
		return nil, err
	}
	if g.age(now); g.State == "expired" {
		return nil, fmt.Errorf("%w: the question is older than %v", ErrExpired, pendingFor)
	} else if g.State != "pending" {
		return nil, invalid("the grant is %s, it waits for no decision", g.State)
	}
	set, err := e.settings(ctx, now)
	if err != nil {
		return nil, err
	}
	if err := set.gone(g.App, g.Trigger, g.IssuedAt.UnixMicro()); err != nil {
		return nil, err
	}
	at := e.place(account, g.App, g.Domain)
	ops := []store.Op{
		store.Check(kindRevocation, aggregate+"."+hereAll, g.revisions[0]),
		store.Check(kindRevocation, aggregate+"."+at.here, g.revisions[1]),
		store.Check(kindRevocation, aggregate+"."+g.ID, 0),
	}
	entry := Entry{At: now, What: "denied", Account: account, App: g.App, Grant: g.ID}
	question := e.consentID(g, aggregate) // by the actions that were asked about
	if allow {
		// This is when the grant is issued: what has changed since the question counts.
		if g.Actions, err = e.may(ctx, g, g.Actions); err != nil {
			if errors.Is(err, ErrDenied) {
				e.refuse(ctx, now, refusal{account, g.App, g.ID, g.Domain.String(), "denied"})
			}
			return nil, err
		}
		entry.What = "issued"
		ops = append(ops, e.ready(g, aggregate, now))
	} else {
		g.State = "denied"
	}
	entry.Scope = g.Scope().String()
	r, err := g.record(aggregate, version, g.end(now))
	if err != nil {
		return nil, err
	}
	ops = append(ops, store.Put(r), e.ledgerOp(aggregate, &entry))
	if g.consent == Once {
		data, err := json.Marshal(consentData{allow, g.revisions})
		if err != nil {
			return nil, err
		}
		ops = append(ops, store.Put(store.Record{Kind: kindConsent, ID: question, Version: store.AnyVersion,
			Owner: account, App: g.App, NotAfter: now.Add(keepConsent), Data: data}))
	}
	out, err := e.store.Apply(ctx, now, ops)
	switch {
	case err != nil:
		return nil, err
	case out.Applied():
		e.tell(ctx, &entry)
		return g, nil
	case out.Op < 3:
		return nil, ErrRevoked
	}
	return nil, invalid("the grant was decided just now")
}

// Grants returns the grants of an account, the newest first: those that are alive, and with all also those that ended
// in the last 7 days. App restricts them to one app's, unless empty. A damaged record hides none of the others: they
// are returned beside the error.
func (e *Engine) Grants(ctx context.Context, account, app string, all bool) ([]Grant, error) {
	if account == "" {
		return nil, invalid("grants of no account")
	}
	now := e.now()
	aggregate := e.aggregate(account)
	var out []Grant
	var faults []error
	q := store.Query{Kind: kindGrant, Prefix: aggregate + ".", App: app, Limit: store.MaxPage}
	for {
		page, err := e.store.List(ctx, q)
		if err != nil {
			return nil, err
		}
		for i := range page {
			g, err := readGrant(&page[i])
			if err != nil {
				faults = append(faults, err)
				continue
			}
			if g.age(now); all || g.alive() {
				out = append(out, *g)
			}
		}
		if len(page) < q.Limit {
			break
		}
		q.After = page[len(page)-1].ID
	}
	if err := e.markRevoked(ctx, out); err != nil {
		return nil, err
	}
	if !all {
		out = slices.DeleteFunc(out, func(g Grant) bool { return !g.alive() })
	}
	slices.SortStableFunc(out, func(a, b Grant) int { return b.IssuedAt.Compare(a.IssuedAt) })
	return out, errors.Join(faults...)
}

func (g *Grant) alive() bool {
	return g.State == "pending" || g.State == "issued" || g.State == "redeemed" || g.State == "suspended"
}

// markRevoked looks up what could have revoked these grants: their own revocations, their apps' and their accounts',
// and the configuration.
func (e *Engine) markRevoked(ctx context.Context, grants []Grant) error {
	set, err := e.settings(ctx, e.now())
	if err != nil {
		return err
	}
	ids := map[string]bool{}
	places := make([]placeNames, len(grants))
	for i := range grants {
		g := &grants[i]
		at := e.place(g.Account, g.App, g.Domain)
		places[i] = at
		ids[at.aggregate+"."+hereAll] = true
		ids[at.aggregate+"."+g.ID] = true
		ids[at.aggregate+"."+at.here] = true
		for _, l := range g.parents {
			ids[at.aggregate+"."+l.grant] = true
			ids[at.aggregate+"."+e.place(g.Account, l.app, g.Domain).here] = true
		}
	}
	version := map[string]uint64{}
	for page := range slices.Chunk(slices.Collect(maps.Keys(ids)), store.MaxPage) {
		found, err := e.store.Get(ctx, kindRevocation, page...)
		if err != nil {
			return err
		}
		for _, r := range found {
			version[r.ID] = r.Version
		}
	}
	for i := range grants {
		g, at := &grants[i], places[i]
		if !g.alive() {
			continue
		}
		now := [2]uint64{version[at.aggregate+"."+hereAll], version[at.aggregate+"."+at.here]}
		app := set.apps[g.App]
		switch {
		case now != g.revisions, version[at.aggregate+"."+g.ID] > 0, app == nil, app.before(g.IssuedAt.UnixMicro()):
			g.State = "revoked"
		case app.Suspended, set.suspended[g.Trigger]:
			g.State = "suspended"
		}
		for _, l := range g.parents {
			app := set.apps[l.app]
			switch {
			case version[at.aggregate+"."+l.grant] > 0, version[at.aggregate+"."+e.place(g.Account, l.app, g.Domain).here] != l.version,
				app == nil, app.before(g.IssuedAt.UnixMicro()):
				g.State = "revoked"
			case app.Suspended && g.alive():
				g.State = "suspended"
			}
		}
	}
	return nil
}
