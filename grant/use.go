package grant

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

// Redeem exchanges a code for its delegation token. The app is the one that has authenticated as a client: another
// app's code is [ErrUnknown], like a forged one, which costs the store nothing. A code is redeemed at most once (P3):
// [ErrUsedUp] after that, [ErrExpired] when it came too late, [ErrRevoked]. The token's life begins now. If the
// answer is lost on its way, so is the token: the code cannot tell a retry from a thief.
func (e *Engine) Redeem(ctx context.Context, app string, code Secret) (*Grant, Secret, error) {
	return e.RedeemFunc(ctx, app, code, func(*Grant) error { return nil })
}

// RedeemFunc is Redeem for callers that have conditions of their own: accept is asked when the code has been found
// good, before anything is written. Its error is returned as it is, and leaves the code as it was. It may set Key, and
// change nothing else, of the grant it is shown.
func (e *Engine) RedeemFunc(ctx context.Context, app string, code Secret, accept func(*Grant) error) (*Grant, Secret, error) {
	c, ok := e.keys.openCode(code.Reveal())
	if !ok {
		return nil, Secret{}, errSealed
	}
	now := e.now()
	set, err := e.settings(ctx, now)
	if err != nil {
		return nil, Secret{}, err
	}
	aggregate := e.aggregate(c.account)
	id := aggregate + "." + c.grant
	g, version, err := e.getGrant(ctx, id)
	if err != nil {
		return nil, Secret{}, err
	}
	refused := func(reason string, err error) (*Grant, Secret, error) {
		e.refuse(ctx, now, refusal{g.Account, app, g.ID, g.Scope().String(), reason})
		return nil, Secret{}, err
	}
	if g.App != app {
		return refused("unknown", fmt.Errorf("%w: the code is another app's", ErrUnknown))
	}
	if !NewSecret(g.codeHash).Equal(hashOf(c.secret[:])) {
		return refused("unknown", fmt.Errorf("%w: no such code", ErrUnknown))
	}
	switch {
	case g.State == "redeemed":
		return refused("used_up", fmt.Errorf("%w: the code was redeemed before", ErrUsedUp))
	case g.State != "issued":
		return refused("unknown", fmt.Errorf("%w: the grant is %s", ErrUnknown, g.State))
	case !now.Before(g.RedeemBy):
		return refused("expired", fmt.Errorf("%w: the code was good until %v", ErrExpired, g.RedeemBy.Format(time.RFC3339)))
	}
	if err := set.gone(g.App, g.Trigger, g.IssuedAt.UnixMicro()); err != nil {
		return refused("revoked", err)
	}
	if err := accept(g); err != nil {
		return nil, Secret{}, err
	}
	if err := checkKey(g.Key); err != nil {
		return nil, Secret{}, err
	}
	at := e.place(g.Account, g.App, g.Domain)
	t := sealedToken{
		secret: newSecret(), issued: now.UnixMicro(), notAfter: now.Add(g.For).UnixMicro(), versions: g.revisions, uses: int64(g.Uses),
		aggregate: aggregate, grant: g.ID, here: at.here, account: g.Account, app: g.App,
		domain: g.Domain.String(), actions: strings.Join(g.Actions, " "),
		trigger: g.Trigger, operation: string(g.Event.Operation), event: g.Event.ID,
		deeper: g.deeper, key: g.Key, delegates: strings.Join(g.delegates, " "),
	}
	token := e.keys.sealToken(&t)
	g.State, g.NotAfter = "redeemed", micros(t.notAfter)
	r, err := g.record(aggregate, version, g.NotAfter)
	if err != nil {
		return nil, Secret{}, err
	}
	left := int64(g.Uses)
	if g.Uses == Unlimited {
		left = unlimited
	}
	entry := Entry{At: now, What: "redeemed", Account: g.Account, App: g.App, Grant: g.ID, Scope: g.Scope().String(), Left: g.Uses}
	out, err := e.store.Apply(ctx, now, []store.Op{
		store.Check(kindRevocation, aggregate+"."+hereAll, g.revisions[0]),
		store.Check(kindRevocation, aggregate+"."+at.here, g.revisions[1]),
		store.Check(kindRevocation, id, 0),
		store.Put(r),
		store.Put(store.Record{Kind: kindToken, ID: aggregate + "." + hashOf(t.secret[:]), Owner: g.Account, App: g.App, NotAfter: g.NotAfter, Left: left}),
		store.Delete(string(g.Deliver), id, store.AnyVersion),
		e.ledgerOp(aggregate, &entry),
	})
	switch {
	case err != nil:
		return nil, Secret{}, err
	case out.Applied():
		e.tell(ctx, &entry)
		return g, NewSecret(token), nil
	case out.Op < 3:
		return refused("revoked", fmt.Errorf("%w: before the code was redeemed", ErrRevoked))
	}
	return refused("used_up", fmt.Errorf("%w: the code was redeemed just now", ErrUsedUp))
}

// unlimited is what Left begins at for tokens without a count: uses are still counted down, for the record. It fits a
// double, which some stores count in.
const unlimited = int64(1) << 52

// A Delegation is one use of a token: this account, through this app, here, to do this.
type Delegation struct {
	Account string       // on whose behalf
	App     string       // by which app; what comes of it shows the app's name
	Domain  scope.Domain // where this use acts: the domain of Scope, which the grant covers
	Scope   scope.Scope  // what was asked for; zero from Inspect
	Grant   string       // by which grant; pass it on as Event.By
	Trigger string
	// Operation and Event name the cause: what the account did.
	Operation Operation
	Event     string
	IssuedAt  time.Time
	NotAfter  time.Time
	Uses      int // as granted, or Unlimited
	Left      int // after this use, or Unlimited; a count is 0 while it is not Spent
	granted   string
	actions   string
	pending   *pending // from Prepare
	more      *more    // nil: there is none
}

// more is what nearly no token has.
type more struct {
	key   string
	links []link
}

// Key is the thumbprint of the key that the token is bound to, as in Grant.Key; empty: none.
func (d *Delegation) Key() string {
	if d.more == nil {
		return ""
	}
	return d.more.key
}

// Actors are the apps that act for the account: App, and then those that it has the token from (see [Engine.Derive]),
// the last one first: the act claim of RFC 8693 §4.1.
func (d *Delegation) Actors() []string {
	if d.more == nil {
		return []string{d.App}
	}
	return actors(d.App, d.more.links)
}

// Granted is all that the token allows.
func (d *Delegation) Granted() scope.Set {
	domain, err := scope.ParseDomain(d.granted)
	if err != nil {
		return scope.Set{}
	}
	return (&Grant{Domain: domain, Actions: strings.Fields(d.actions)}).Scope()
}

// GrantedIn is the domain that the token is bound to.
func (d *Delegation) GrantedIn() scope.Domain {
	domain, _ := scope.ParseDomain(d.granted)
	return domain
}

// Use verifies a token for want and spends one use, or what the catalog says that the action costs, in a single write
// together with its ledger entry. Each of two things happens: the use is spent and there is a Delegation, or nothing
// is spent and there is an error.
//
// A forged or foreign token is [ErrUnknown], at the price of decoding it. A real one fails with [ErrExpired],
// scope.ErrWrongDomain, scope.ErrWrongAction, [ErrDenied] (rights have changed), [ErrRevoked] or [ErrUsedUp]; see
// [Reason]. Any other error comes from the store or from Permit; after one of the store's the use may have been
// spent.
func (e *Engine) Use(ctx context.Context, token string, want scope.Scope) (*Delegation, error) {
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	if err := e.open(ctx, s, token); err != nil {
		return nil, err
	}
	return e.useOpened(ctx, s, want)
}

// UseFunc is Use for a scope that must be looked up: resolve is called only for a token that this server sealed, so
// that a forged one costs the caller's database nothing either. An error of resolve is returned as it is; nothing is
// spent.
func (e *Engine) UseFunc(ctx context.Context, token string, resolve func() (scope.Scope, error)) (*Delegation, error) {
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	if err := e.open(ctx, s, token); err != nil {
		return nil, err
	}
	want, err := resolve()
	if err != nil {
		return nil, err
	}
	return e.useOpened(ctx, s, want)
}

// A scratch is the memory of one use, taken again by the next: nothing of it is kept, neither by a store (its
// contract) nor in a Delegation.
type scratch struct {
	token  sealedToken
	opened openedToken
	ids    recordIDs
	plain  [1024]byte
	text   [1024]byte
	ops    [5]store.Op
}

var scratches = sync.Pool{New: func() any {
	return &scratch{ops: [5]store.Op{
		store.Check(kindRevocation, "", 0), store.Check(kindRevocation, "", 0), store.Check(kindRevocation, "", 0), store.Spend(kindToken, "", 0, nil), store.Put(store.Record{Kind: kindLedger}),
	}}
}}

// operations fills in what differs from one use to the next.
func (s *scratch) operations(cost int64, entry *Entry) []store.Op {
	ops, t := &s.ops, &s.token
	ops[0].Record.ID, ops[0].Record.Version = s.ids.all, t.versions[0]
	ops[1].Record.ID, ops[1].Record.Version = s.ids.here, t.versions[1]
	ops[2].Record.ID = s.ids.grant
	ops[3].Record.ID, ops[3].N = s.ids.token, cost
	put := &ops[4].Record
	put.ID, put.Owner, put.App, put.NotAfter, put.Data = s.ids.entry, entry.Account, entry.App, entry.At, appendEntry(s.text[:0], entry)
	return ops[:]
}

// open opens the token of a use, which must be bound to no key. The text of an ordinary one waits for name.
func (e *Engine) open(ctx context.Context, s *scratch, token string) (err error) {
	t, ok := &s.token, false
	if s.opened, ok = e.keys.openHead(token, t, s.plain[:]); !ok {
		return errSealed
	}
	if s.opened.format == tokenFormat {
		return nil
	}
	if !t.setAll(&s.opened) {
		return errSealed
	}
	if t.key != "" {
		return e.keyless(ctx, t)
	}
	return nil
}

func (e *Engine) useOpened(ctx context.Context, s *scratch, want scope.Scope) (*Delegation, error) {
	t := &s.token
	if s.opened.format != tokenFormat && t.parents != "" {
		return (&pending{engine: e, token: *t}).use(ctx, want)
	}
	now := e.now()
	if !e.name(s, now) {
		return nil, errSealed
	}
	d, err := e.use(ctx, s, now, want)
	if Reason(err) != "" {
		e.refuse(ctx, now, refusal{t.account, t.app, t.grant, want.String(), Reason(err)})
	}
	return d, err
}

func (e *Engine) use(ctx context.Context, s *scratch, now time.Time, want scope.Scope) (*Delegation, error) {
	t := &s.token
	if err := t.allows(now, want); err != nil {
		return nil, err
	}
	set, err := e.settings(ctx, now)
	if err != nil {
		return nil, err
	}
	cost, err := e.permitted(ctx, set, t, want)
	if err != nil {
		return nil, err
	}
	entry := Entry{At: now, What: "used", Account: t.account, App: t.app, Grant: t.grant, Scope: want.String()}
	entry.ID = s.ids.entry[len(t.aggregate)+1:]
	out, err := e.store.Apply(ctx, now, s.operations(cost, &entry))
	if err == nil {
		err = refused(out, want, cost)
	}
	if err != nil {
		return nil, err
	}
	d := t.delegation(out.Left)
	d.Domain, d.Scope = want.Domain(), want
	entry.Left = d.Left
	e.tell(ctx, &entry)
	return d, nil
}

// allows is all that the token itself can tell of a use: whether it is too late, and elsewhere or otherwise than
// granted.
func (t *sealedToken) allows(now time.Time, want scope.Scope) error {
	if now.UnixMicro() >= t.notAfter {
		return fmt.Errorf("%w: at %s", ErrExpired, micros(t.notAfter).Format(time.RFC3339))
	}
	action, where := want.Action(), want.Domain()
	if !covers(t.domain, where.String()) {
		return fmt.Errorf("%w: granted in %s, asked in %s", scope.ErrWrongDomain, t.domain, where)
	}
	if !hasField(t.actions, action) {
		return fmt.Errorf("%w: granted %s, asked %s", scope.ErrWrongAction, t.actions, action)
	}
	return nil
}

// refused is the error for what the store says of the operations of a use, the first three of which ask for
// revocations.
func refused(out store.Outcome, want scope.Scope, cost int64) error {
	switch {
	case out.Applied():
		return nil
	case out.Op < 3:
		return ErrRevoked
	case out.Reason == store.Exhausted:
		return fmt.Errorf("%w: %d left, %s costs %d", ErrUsedUp, out.Left, want.Action(), cost)
	case out.Reason == store.Expired:
		return ErrExpired
	}
	// Sealed by us, and not in the store: purged, or a store that forgot.
	return fmt.Errorf("%w: no such token", ErrUnknown)
}

// permitted asks everything that may have changed since the grant was made, and says what the use costs.
func (e *engine) permitted(ctx context.Context, set *settings, t *sealedToken, want scope.Scope) (cost int64, err error) {
	app := set.apps[t.app]
	if err := set.goneApp(app, t.app, t.trigger, t.issued); err != nil {
		return 0, err
	}
	cost, ok := app.cost(want.Action())
	if !ok {
		return 0, fmt.Errorf("%w: the app %s is no longer registered for %s", ErrDenied, t.app, want.Action())
	}
	if err := e.permit(ctx, Access{Account: t.account, App: t.app, Scope: want, Grant: t.grant}); err != nil {
		return 0, err
	}
	if t.parents != "" {
		if err := e.permittedParents(ctx, set, t, want); err != nil {
			return 0, err
		}
	}
	if since := e.known(); since != set { // what was seen while Permit took its time
		if err := since.gone(t.app, t.trigger, t.issued); err != nil {
			return 0, err
		}
		return cost, since.goneParents(t)
	}
	return cost, nil
}

func (t *sealedToken) delegation(left int64) *Delegation {
	d := &Delegation{Account: t.account, App: t.app, Grant: t.grant, Trigger: t.trigger, Operation: Operation(t.operation), Event: t.event,
		IssuedAt: micros(t.issued), NotAfter: micros(t.notAfter), Uses: int(t.uses), Left: int(left), granted: t.domain, actions: t.actions}
	if t.uses == Unlimited {
		d.Left = Unlimited
	}
	if !t.ordinary() {
		links, _ := t.links()
		d.more = &more{t.key, links}
	}
	return d
}

// recordIDs are those of the records that decide about a token, and of the ledger's entry of a use.
type recordIDs struct{ all, here, grant, token, entry string }

// ids are those of the records that decide about the token.
func (t *sealedToken) ids() recordIDs {
	at := t.aggregate + "."
	return recordIDs{all: at + hereAll, here: at + t.here, grant: at + t.grant, token: at + hashOf(t.secret[:])}
}

// name sets the strings of a token that was opened, and the IDs for a use of it: all are parts of one string, made at once.
func (e *engine) name(s *scratch, now time.Time) bool {
	t, o := &s.token, &s.opened
	hash := sha256.Sum256(t.secret[:])
	b := append(s.text[:0], o.texts...)
	texts := len(b)
	b = append(append(append(b, o.aggregate...), '.'), hereAll...)
	all := len(b)
	b = append(append(append(b, o.aggregate...), '.'), o.here...)
	here := len(b)
	b = append(append(append(b, o.aggregate...), '.'), o.grant...)
	grant := len(b)
	b = b64.AppendEncode(append(append(b, o.aggregate...), '.'), hash[:])
	token := len(b)
	b = e.appendEntryID(append(append(b, o.aggregate...), '.'), now)

	text, dot := string(b), len(o.aggregate)
	s.ids = recordIDs{text[texts:all], text[all:here], text[here:grant], text[grant:token], text[token:]}
	return t.setNames(s.ids.grant[:dot], s.ids.grant[dot+1:], s.ids.here[dot+1:]) && t.setTexts(o.format, text[:texts])
}

// covers is Domain.Covers for the sealed text, which was canonical when it was sealed.
func covers(domain, other string) bool {
	return strings.HasPrefix(other, domain) && (len(other) == len(domain) || other[len(domain)] == '/')
}

func hasField(list, word string) bool {
	for more := true; more; {
		var field string
		if field, list, more = strings.Cut(list, " "); field == word {
			return true
		}
	}
	return false
}

func contains(list []string, word string) bool {
	for _, s := range list {
		if s == word {
			return true
		}
	}
	return false
}

// Inspect says what a token could do now, and spends nothing: Left is what is left, Granted what of the grant the
// account and the app still may. It fails as Use does.
func (e *Engine) Inspect(ctx context.Context, token Secret) (*Delegation, error) {
	return e.InspectFunc(ctx, token, func(*Delegation) error { return nil })
}

// InspectFunc is Inspect for callers that do not tell everybody everything: accept is shown, before the store is asked,
// what is sealed in the token, whether it is still good or not. Its error is returned as it is.
func (e *Engine) InspectFunc(ctx context.Context, token Secret, accept func(*Delegation) error) (*Delegation, error) {
	var t sealedToken
	if !e.keys.openToken(token.Reveal(), &t) {
		return nil, errSealed
	}
	if err := accept(t.delegation(0)); err != nil {
		return nil, err
	}
	now := e.now()
	if now.UnixMicro() >= t.notAfter {
		return nil, ErrExpired
	}
	set, err := e.settings(ctx, now)
	if err != nil {
		return nil, err
	}
	ids := t.ids()
	links, _ := t.links()
	wanted := t.checks([]store.Op{
		store.Check(kindRevocation, ids.all, t.versions[0]),
		store.Check(kindRevocation, ids.here, t.versions[1]),
		store.Check(kindRevocation, ids.grant, 0)}, links)
	asked := make([]string, len(wanted))
	for i := range wanted {
		asked[i] = wanted[i].Record.ID
	}
	revoked, err := e.store.Get(ctx, kindRevocation, asked...)
	if err != nil {
		return nil, err
	}
	versions := map[string]uint64{}
	for _, r := range revoked {
		versions[r.ID] = r.Version
	}
	for i := range wanted {
		if r := &wanted[i].Record; versions[r.ID] != r.Version {
			return nil, ErrRevoked
		}
	}
	left, ok, err := e.left(ctx, e.store, t.tokens(ids.token, links))
	switch {
	case err != nil:
		return nil, err
	case !ok:
		return nil, fmt.Errorf("%w: no such token", ErrUnknown)
	case left <= 0:
		return nil, ErrUsedUp
	}
	d := t.delegation(left)
	var may []string
	for _, action := range strings.Fields(t.actions) {
		s, err := scope.New(d.GrantedIn(), action)
		if err != nil {
			return nil, err
		}
		_, err = e.permitted(ctx, set, &t, s)
		switch {
		case err == nil:
			may = append(may, action)
		case !errors.Is(err, ErrDenied):
			return nil, err
		}
	}
	if len(may) == 0 {
		return nil, fmt.Errorf("%w: nothing of the grant is left", ErrDenied)
	}
	d.Domain, d.actions = d.GrantedIn(), strings.Join(may, " ")
	return d, nil
}
