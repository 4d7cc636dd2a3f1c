package grant

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

const (
	// deriveDepth is how many tokens may be derived, one of the other, unless the trigger says otherwise. Even with
	// maxDeriveDepth, a use with all it may take fits into one Apply.
	deriveDepth    = 4
	maxDeriveDepth = 8
	// maxDerived bounds what a holder can fill the store with: all that is ever derived from one redeemed token, at
	// whatever depth.
	maxDerived   = 64
	maxDelegates = 8
)

// A link is a token that another one was derived from, and what must not have changed for both to be good.
type link struct {
	token   string // the hash of its secret
	grant   string
	app     string
	here    string // of the app's revocations, with their version
	version uint64
}

func appendLink(b []byte, l *link) []byte {
	for _, s := range [...]string{l.token, l.grant, l.here} { // the app is in the grant's ID
		b = appendString(b, s)
	}
	return binary.AppendUvarint(b, l.version)
}

// cutLink takes one link from the front.
func cutLink(s string) (l link, rest string, ok bool) {
	for _, to := range [...]*string{&l.token, &l.grant, &l.here} {
		if *to, s, ok = cutText(s); !ok {
			return l, "", false
		}
	}
	if l.app, ok = appOf(l.grant); !ok {
		return l, "", false
	}
	version, n := uvarint(s)
	if n <= 0 {
		return l, "", false
	}
	l.version = version
	return l, s[n:], true
}

// links are the tokens that this one is derived from, the nearest first. False is for what is not made of them, or of
// more than a use can check.
func (t *sealedToken) links() (out []link, ok bool) {
	for rest := t.parents; rest != ""; {
		var l link
		if l, rest, ok = cutLink(rest); !ok || len(out) == maxDeriveDepth {
			return nil, false
		}
		out = append(out, l)
	}
	return out, true
}

// checks ask whether what the token is derived from was revoked; what is its own is asked for before.
func (t *sealedToken) checks(ops []store.Op, links []link) []store.Op {
	asked := append(make([]string, 0, maxDeriveDepth+1), t.here)
	for i := range links {
		l := &links[i]
		ops = append(ops, store.Check(kindRevocation, t.aggregate+"."+l.grant, 0))
		if !contains(asked, l.here) {
			asked = append(asked, l.here)
			ops = append(ops, store.Check(kindRevocation, t.aggregate+"."+l.here, l.version))
		}
	}
	return ops
}

// actors are app, and then those that it has the token from.
func actors(app string, links []link) []string {
	out := []string{app}
	for i := range links {
		out = append(out, links[i].app)
	}
	return slices.Compact(out) // who derives for itself is one actor
}

// permittedParents asks of the apps in between what permitted asks of the one that acts: a child is never more than
// what it was derived from.
func (e *engine) permittedParents(ctx context.Context, set *settings, t *sealedToken, want scope.Scope) error {
	if err := set.goneParents(t); err != nil {
		return err
	}
	links, _ := t.links()
	asked := append(make([]string, 0, maxDeriveDepth+1), t.app)
	for i := range links {
		l := &links[i]
		if contains(asked, l.app) {
			continue
		}
		asked = append(asked, l.app)
		if !contains(set.apps[l.app].Actions, want.Action()) {
			return fmt.Errorf("%w: the app %s, which the token was derived from, is no longer registered for %s", ErrDenied, l.app, want.Action())
		}
		if err := e.permit(ctx, Access{Account: t.account, App: l.app, Scope: want, Grant: l.grant}); err != nil {
			return err
		}
	}
	return nil
}

func (s *settings) goneParents(t *sealedToken) error {
	links, _ := t.links()
	for i := range links {
		if err := s.gone(links[i].app, t.trigger, t.issued); err != nil {
			return err
		}
	}
	return nil
}

// left is what is left of a token and of all that it is derived from: the least. False: they are not all there.
func (e *Engine) left(ctx context.Context, st store.Store, ids []string) (int64, bool, error) {
	found, err := st.Get(ctx, kindToken, ids...)
	if err != nil || len(found) < len(ids) {
		return 0, false, err
	}
	left := found[0].Left
	for _, r := range found {
		left = min(left, r.Left)
	}
	return left, true, nil
}

// tokens are the IDs of the records that a use spends.
func (t *sealedToken) tokens(id string, links []link) []string {
	ids := append(make([]string, 0, 1+len(links)), id)
	for i := range links {
		ids = append(ids, t.aggregate+"."+links[i].token)
	}
	return ids
}

// Derive exchanges a delegation token for a narrower one (RFC 8693): its child. The app is the one that asks and has
// authenticated as a client: the token's own, or one that the trigger names in Delegates, to which the token's app has
// handed it. The child is for the app that asks, which knows the account by its own name (see [Engine.Name]).
//
// Of want, Domain, Actions, For and Uses count: where, for what, for how long from now, and how often; each that is zero
// is as the token has it now. The child is a grant of its own, with Parent, for the same account and by the same cause,
// and
//
//   - each of its uses spends also one of the token, and of what that was derived from, in the same write;
//   - it dies with each of them, and may be revoked by itself, which leaves them alive;
//   - it can do what both apps are registered for, and Permit is asked for each of them;
//   - it is bound to the token's key, if that is bound to one.
//
// Deriving spends nothing. From one redeemed token 64 are derived at most, at whatever depth, and as many one of the
// other as the trigger's DeriveDepth says: more is [ErrLimited].
//
// What another app asks for is [ErrUnknown], like a forgery, and costs the store as little. A real token fails as in Use.
// To want more than the token allows, or has left, or than the app is registered for, is scope.ErrWiden; to want by
// name what Permit refuses is [ErrDenied], as it is when nothing remains to be done; a fault in want is [ErrInvalid].
func (e *Engine) Derive(ctx context.Context, app string, token Secret, want Grant) (*Grant, Secret, error) {
	return e.DeriveFunc(ctx, app, token, want, func(*Delegation, *Grant) error { return nil })
}

// DeriveFunc is Derive for callers that have conditions of their own: accept is shown the token and its child before
// anything is written. Its error is returned as it is. It may set the child's Key and change nothing else: that who exchanges a
// token which is bound to a key has that key (see [Delegation.Key]) is for accept to see to.
func (e *Engine) DeriveFunc(ctx context.Context, app string, token Secret, want Grant, accept func(parent *Delegation, child *Grant) error) (*Grant, Secret, error) {
	var t sealedToken
	if !e.keys.openToken(token.Reveal(), &t) {
		return nil, Secret{}, errSealed
	}
	now := e.now()
	g, secret, err := e.derive(ctx, now, app, &t, &want, accept)
	if err == nil {
		return g, secret, nil
	}
	reason := Reason(err)
	switch {
	case err == errForeign:
		reason = "unknown"
	case errors.Is(err, scope.ErrWiden):
		reason = "widen"
	case errors.Is(err, ErrLimited):
		reason = "limited"
	}
	if reason != "" {
		e.refuse(ctx, now, refusal{t.account, app, t.grant, "", reason})
	}
	return nil, Secret{}, err
}

var errForeign = fmt.Errorf("%w: the token is another app's", ErrUnknown)

func (e *Engine) derive(ctx context.Context, now time.Time, app string, t *sealedToken, want *Grant, accept func(*Delegation, *Grant) error) (*Grant, Secret, error) {
	if app == "" || app != t.app && !hasField(t.delegates, app) {
		return nil, Secret{}, errForeign
	}
	if now.UnixMicro() >= t.notAfter {
		return nil, Secret{}, ErrExpired
	}
	set, err := e.settings(ctx, now)
	if err != nil {
		return nil, Secret{}, err
	}
	// By when the token was issued: its app may have been removed since then, and added again.
	err = errors.Join(set.gone(app, t.trigger, now.UnixMicro()), set.gone(t.app, t.trigger, t.issued), set.goneParents(t))
	if err != nil {
		return nil, Secret{}, err
	}
	c, err := e.child(now, app, t, want)
	if err != nil {
		return nil, Secret{}, err
	}
	actions, err := e.mayDerive(ctx, set, c, t, want.Actions)
	if err != nil {
		return nil, Secret{}, err
	}
	ids := t.ids()
	links, _ := t.links()
	left, ok, err := e.left(ctx, e.store, t.tokens(ids.token, links))
	if err == nil {
		err = c.count(t, left, ok, want.Uses)
	}
	if err != nil {
		return nil, Secret{}, err
	}
	cause, _, err := e.getGrant(ctx, ids.grant)
	if err != nil {
		return nil, Secret{}, err
	}
	c.grant = grantID(name16(e.keys.aggregate, "derived", string(c.secret[:])), app)
	g := *cause
	g.ID, g.App, g.Domain, g.Actions, g.Parent = c.grant, app, want.Domain, actions, t.grant
	g.State, g.IssuedAt, g.RedeemBy, g.NotAfter, g.codeHash = "redeemed", now, time.Time{}, micros(c.notAfter), ""
	g.For, g.Uses, g.Key, g.deeper = g.NotAfter.Sub(now), int(c.uses), t.key, c.deeper
	if g.Domain.IsZero() {
		if g.Domain, err = scope.ParseDomain(t.domain); err != nil {
			return nil, Secret{}, err
		}
	}
	d := t.delegation(left)
	d.Domain = d.GrantedIn()
	if err := accept(d, &g); err != nil {
		return nil, Secret{}, err
	}
	if err := checkKey(g.Key); err != nil {
		return nil, Secret{}, err
	}
	if t.key != "" && g.Key == "" {
		return nil, Secret{}, fmt.Errorf("%w: the token is bound to a key", scope.ErrWiden)
	}
	c.key, c.actions = g.Key, strings.Join(actions, " ")
	g.parents, _ = c.links()

	begun := t.grant // whose token was redeemed
	if len(links) > 0 {
		begun = links[len(links)-1].grant
	}
	counter := store.Spend(kindWindow, t.aggregate+"."+begun+"-derived", 1, nil)
	if len(links) == 0 {
		counter = store.Spend(kindWindow, counter.Record.ID, 1, &store.Record{Owner: t.account, App: t.app, Left: maxDerived, NotAfter: micros(t.notAfter)})
	}
	r := store.Record{Kind: kindToken, ID: t.aggregate + "." + hashOf(c.secret[:]), Owner: g.Account, App: app, NotAfter: g.NotAfter, Left: c.uses}
	if c.uses == Unlimited {
		r.Left = unlimited
	}
	entry := Entry{At: now, What: "derived", Account: g.Account, App: app, Grant: g.ID, Scope: g.Scope().String(), By: t.app, Parent: t.grant, Left: g.Uses}
	childHere := t.aggregate + "." + c.here
	known := c.here == t.here || slices.ContainsFunc(links, func(l link) bool { return l.here == c.here })
	for range 8 { // a turn more when it was not known how often the child's app was revoked here
		if !known {
			c.versions[1] = e.versions.get(childHere)
		}
		g.revisions = c.versions
		made, err := g.record(t.aggregate, 0, g.NotAfter)
		if err != nil {
			return nil, Secret{}, err
		}
		ops := t.checks(append(make([]store.Op, 0, store.MaxBatch),
			store.Check(kindRevocation, ids.all, t.versions[0]),
			store.Check(kindRevocation, ids.here, t.versions[1]),
			store.Check(kindRevocation, ids.grant, 0)), links)
		if !known {
			ops = append(ops, store.Check(kindRevocation, childHere, c.versions[1]))
		}
		ops = append(ops, counter, store.Put(made), store.Put(r), e.ledgerOp(t.aggregate, &entry))
		out, err := e.store.Apply(ctx, now, ops)
		if err != nil {
			return nil, Secret{}, err
		}
		if out.Applied() {
			e.tell(ctx, &entry)
			return &g, NewSecret(e.keys.sealToken(c)), nil
		}
		switch there := &ops[out.Op].Record; {
		case there.Kind == kindRevocation && there.ID == childHere && !known:
			e.versions.learn(childHere, out.Version)
		case there.Kind == kindRevocation:
			return nil, Secret{}, ErrRevoked
		case there.Kind == kindWindow && out.Reason == store.Exhausted:
			return nil, Secret{}, fmt.Errorf("%w: %d tokens were derived of the one that was redeemed", ErrLimited, maxDerived)
		case there.Kind == kindWindow: // it ends with that token
			return nil, Secret{}, ErrExpired
		default:
			return nil, Secret{}, fmt.Errorf("grant: the store refused a derived token: %s, %v", there.Kind, out.Reason)
		}
	}
	return nil, Secret{}, errors.New("grant: the store changes faster than a token can be derived")
}

// child is the token that want asks for, as far as the one at hand can tell.
func (e *Engine) child(now time.Time, app string, t *sealedToken, want *Grant) (*sealedToken, error) {
	c := *t
	c.secret, c.issued, c.app, c.deeper = newSecret(), now.UnixMicro(), app, t.deeper-1
	c.grant = "" // asked about before there is one
	own := link{token: hashOf(t.secret[:]), grant: t.grant, app: t.app, here: t.here, version: t.versions[1]}
	c.parents = string(appendLink(nil, &own)) + t.parents
	if t.deeper == 0 {
		return nil, fmt.Errorf("%w: nothing more is derived of this token", ErrLimited)
	}
	if !want.Domain.IsZero() {
		if c.domain = want.Domain.String(); !covers(t.domain, c.domain) {
			return nil, fmt.Errorf("%w: the token is for %s, not for %s", scope.ErrWiden, t.domain, want.Domain)
		}
	}
	if app != t.app {
		domain, err := scope.ParseDomain(t.domain)
		if err != nil {
			return nil, err
		}
		c.here = e.place(t.account, app, domain).here
		links, _ := c.links()
		for i := range links {
			if links[i].here == c.here {
				c.versions[1] = links[i].version
			}
		}
	}
	switch {
	case want.For < 0 || want.For > 0 && want.For < time.Second:
		return nil, invalid("a derived token lives for a second at least, not for %v", want.For)
	case want.For > micros(t.notAfter).Sub(now):
		return nil, fmt.Errorf("%w: the token lives until %s", scope.ErrWiden, micros(t.notAfter).Format(time.RFC3339))
	case want.For > 0:
		c.notAfter = now.Add(want.For).UnixMicro()
	}
	if want.Uses < Unlimited || want.Uses > maxUses {
		return nil, invalid("uses: %d is not between 1 and %d, nor Unlimited (%d)", want.Uses, maxUses, Unlimited)
	}
	return &c, nil
}

// count sets the uses of a child: no more than what is left of the token.
func (c *sealedToken) count(t *sealedToken, left int64, there bool, uses int) error {
	switch {
	case !there:
		return fmt.Errorf("%w: no such token", ErrUnknown)
	case left <= 0:
		return ErrUsedUp
	case uses != 0:
		c.uses = int64(uses)
	case t.uses != Unlimited:
		c.uses = left
	}
	if t.uses != Unlimited && (c.uses == Unlimited || c.uses > left) {
		return fmt.Errorf("%w: the token has %d uses left", scope.ErrWiden, left)
	}
	return nil
}

// mayDerive is what the child may do: all that was asked for by name, or else what of the token remains.
func (e *Engine) mayDerive(ctx context.Context, set *settings, c, t *sealedToken, names []string) ([]string, error) {
	domain, err := scope.ParseDomain(c.domain)
	if err != nil {
		return nil, err
	}
	named := len(names) > 0
	if !named {
		names = strings.Fields(t.actions)
	}
	names = slices.Sorted(slices.Values(names))
	var may []string
	for i, action := range names {
		if !hasField(t.actions, action) || action == "" {
			return nil, fmt.Errorf("%w: the token is not for %.80q", scope.ErrWiden, action)
		}
		if i > 0 && names[i-1] == action {
			return nil, invalid("the action %s is there twice", action)
		}
		if !contains(set.apps[c.app].Actions, action) {
			if named {
				return nil, fmt.Errorf("%w: the app %s is not registered for %s", scope.ErrWiden, c.app, action)
			}
			continue
		}
		s, err := scope.New(domain, action)
		if err != nil {
			return nil, err
		}
		switch _, err := e.permitted(ctx, set, c, s); {
		case err == nil:
			may = append(may, action)
		case named || !errors.Is(err, ErrDenied):
			return nil, err
		}
	}
	if len(may) == 0 {
		return nil, fmt.Errorf("%w: nothing of the token is left for %s", ErrDenied, c.app)
	}
	return may, nil
}
