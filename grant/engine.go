package grant

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

// An App is what the engine must know of a third-party application: an OAuth client.
type App struct {
	ID        string   // 1 to 64 of the characters A-Z a-z 0-9 . _ -
	Name      string   // shown to people, at most 100 bytes in one line; empty: the ID
	Actions   []string // the most that any trigger may allow it; each in the catalog
	Deliver   Delivery // how its grants travel unless a trigger says otherwise; zero: Poll
	RealNames bool     // it sees accounts by their own names instead of pairwise ones
	Suspended bool     // it gets nothing, and what it was granted is refused as revoked, as long as this is so
	// Private is what a server on top of the engine keeps with the app, by name, in UTF-8: the engine does not look at
	// it, and has it in the store only sealed.
	Private map[string]Secret
}

// An Access is what Permit is asked about.
type Access struct {
	Account string      // would act
	App     string      // through this app
	Scope   scope.Scope // would do this, there
	Grant   string      // by this grant; empty when asked at issue
}

// Config is what an Engine is made of.
type Config struct {
	Store store.Store // required
	// Key is the root of all keys, at least 32 bytes from a good source; required. The names that apps know users by,
	// and those of accounts in the store, are derived from it: it never changes. Engines with one Key and one Store
	// act as one.
	Key Secret
	// Sealing keys, at least 32 bytes each: the first one seals, all of them open. To rotate, add the new key at the
	// end on every node, then move it to the front on every node, and remove the old one when the longest life of a
	// token (7 days) has passed. Empty: Key seals.
	Sealing []Secret
	// Apps and Triggers are where the engine begins. What Change says goes before them.
	Apps     []App
	Triggers []Trigger
	Catalog  *scope.Catalog // what can be done; nil: scope.BuiltIn
	// Permit says whether the account may itself do this, here, right now: nil is yes, an error that wraps ErrDenied
	// is no, any other error means that nobody knows, and nothing happens. It is asked at issue and again at every
	// use, before anything is written. Required.
	Permit func(context.Context, Access) error
	// Check is asked about every configuration before it holds: that of Apps and Triggers, one that a Change would make,
	// one that another node has made. An error is a fault in it; joined ones are several. Nil: nothing more is checked.
	Check func([]App, []Trigger) error
	// Observe is told what was written to the ledger, after it was. It must not block. Nil: nobody is told.
	Observe func(context.Context, Entry)
	Now     func() time.Time // nil: time.Now
	// KeepLedger is how long ledger entries are kept at least. Zero: 90 days.
	KeepLedger time.Duration
}

// An Engine turns operations into grants, grants into tokens, and tokens into uses. It is safe for concurrent use and
// has no goroutine of its own: call Flush and Look about once a second, and Purge now and then.
type Engine struct {
	*engine
	store store.Store
}

type engine struct {
	keys         *keys
	baseApps     []App // as in Config
	baseTriggers []Trigger
	watch        watch
	catalog      *scope.Catalog
	permit       func(context.Context, Access) error
	check        func([]App, []Trigger) error
	observe      func(context.Context, Entry)
	now          func() time.Time
	clock        func() time.Time // what now is made of
	keep         time.Duration
	versions     versions
	refusals     refusals
	entries      atomic.Uint64 // written to the ledger by this node
}

// NewEngine checks all of c and reports every fault at once; each wraps [ErrInvalid]. It does not touch the store: the
// first call, or Look, asks it for what was changed.
func NewEngine(c Config) (*Engine, error) {
	e := &engine{catalog: c.Catalog, permit: strictly(c.Permit), observe: c.Observe, clock: c.Now, keep: c.KeepLedger, check: c.Check}
	var faults []error
	if c.Store == nil {
		faults = append(faults, invalid("Store is required"))
	}
	if c.Permit == nil {
		faults = append(faults, invalid("Permit is required"))
	}
	if e.catalog == nil {
		e.catalog = scope.BuiltIn()
	}
	if e.clock == nil {
		e.clock = time.Now
	}
	// Times are as the store keeps them, so that what is returned at first is what is found later.
	e.now = func() time.Time { return micros(e.clock().UnixMicro()) }
	if e.keep == 0 {
		e.keep = 90 * 24 * time.Hour
	}
	if e.keep < 0 {
		faults = append(faults, invalid("KeepLedger is negative"))
	}
	var err error
	if e.keys, err = newKeys(c.Key, c.Sealing); err != nil {
		faults = append(faults, err)
	}
	for _, a := range c.Apps {
		e.baseApps = append(e.baseApps, a.copied())
	}
	for _, t := range c.Triggers {
		e.baseTriggers = append(e.baseTriggers, t.named().copied())
	}
	if err := e.follow(c.Store); err != nil {
		faults = append(faults, err)
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	return &Engine{engine: e, store: c.Store}, nil
}

func isApp(id string) bool {
	return 0 < len(id) && len(id) <= 64 && strings.Trim(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") == ""
}

func (a *App) check(catalog *scope.Catalog) error {
	var faults []error
	if !isApp(a.ID) {
		faults = append(faults, invalid("app %.80q: an ID has 1 to 64 of A-Z a-z 0-9 . _ -", a.ID))
	}
	if len(a.Name) > 100 || !utf8.ValidString(a.Name) || strings.ContainsFunc(a.Name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		faults = append(faults, invalid("app %.80q: Name is not one line of text of at most 100 bytes", a.ID))
	}
	for i, action := range a.Actions {
		if _, ok := catalog.Lookup(action); !ok {
			faults = append(faults, invalid("app %.80q: the catalog has no action %.80q", a.ID, action))
		}
		if slices.Contains(a.Actions[:i], action) {
			faults = append(faults, invalid("app %.80q: action %.80q is there twice", a.ID, action))
		}
	}
	if a.Deliver != "" && !a.Deliver.known() {
		faults = append(faults, invalid("app %.80q: delivery %.80q is none of push, redirect, poll", a.ID, a.Deliver))
	}
	return errors.Join(faults...)
}

// In returns the same engine over another store, such as one that writes within the caller's transaction. The
// configuration stays that of the Config's store, which is asked outside of the transaction, over a connection more:
// give that store a handle (*sql.DB) of its own, or transactions that wait for each other take all connections, and
// none gets on. Call Look every second, so that hardly any has to ask.
func (e *Engine) In(s store.Store) *Engine { return &Engine{engine: e.engine, store: s} }

// Name is what the app knows the account by: the same at all times and on all nodes, another one for every app,
// unless the app sees real names. An app that does not exist knows nobody: the name is empty. It goes by what the last
// look found, however long ago; before the first one by Config.
func (e *Engine) Name(app, account string) string {
	a := e.known().apps[app]
	switch {
	case a == nil || account == "":
		return ""
	case a.RealNames:
		return account
	}
	return name16(e.keys.pairwise, app, account)
}

// A Grant is the authorization that one operation gave one app: to act for Account, in Domain, to do Actions, for a
// time and a number of times.
type Grant struct {
	// ID is the same, whatever the node, for the same event and trigger: 22 characters, "-", and the ID of the App with
	// "~" for each ".". So it names the app, which is no secret: its own app and the account see it, nobody else.
	ID      string
	Account string
	App     string
	Trigger string
	Domain  scope.Domain // what it is bound to
	Actions []string     // sorted
	Event   Event        // its cause (P1)
	// State is "pending" (waits for Decide), "denied", "issued" (its code waits), "redeemed", "revoked" or "expired"; or
	// "suspended", which it is as long as its app or its trigger is, and then again what it was.
	State    string
	IssuedAt time.Time
	RedeemBy time.Time     // the code's end; zero while pending
	For      time.Duration // the token's life, from its redemption
	NotAfter time.Time     // the token's end; zero until redeemed
	Uses     int           // or Unlimited
	Deliver  Delivery
	// Parent is the ID of the grant whose token this one's was derived from (see [Engine.Derive]); empty: it was redeemed.
	Parent string
	// Key is the thumbprint of the key that the token is bound to (RFC 9449 §6.1: SHA-256 of a JWK, RFC 7638), of at most
	// 128 characters: [Engine.UseBound] alone takes the token. Empty: it is bound to none. See [Engine.RedeemFunc].
	Key          string
	Code         Secret    // from Emit, Decide and Claim, as long as it waits to be delivered and redeemed
	Tries        int       // from Claim: how often delivery was put off before
	Leased       time.Time // from Claim: until then nobody else gets it
	Stateless    bool      // as its trigger was when it was issued
	outbox       store.Record
	codeHash     string
	revisions    [2]uint64
	depth        int
	redeemWithin time.Duration
	consent      Consent
	delegates    []string // as Trigger.Delegates
	deeper       int      // how many tokens may be derived, one of the other
	parents      []link   // of a derived one, without their tokens when read
}

// Actors are the apps that act for the account: App, and then those that it has the token from (see [Engine.Derive]),
// the last one first: the act claim of RFC 8693 §4.1.
func (g *Grant) Actors() []string { return actors(g.App, g.parents) }

// Scope is what the grant allows, in OAuth's words.
func (g *Grant) Scope() scope.Set {
	scopes := make([]scope.Scope, 0, len(g.Actions))
	for _, a := range g.Actions {
		if s, err := scope.New(g.Domain, a); err == nil {
			scopes = append(scopes, s)
		}
	}
	return scope.NewSet(scopes...)
}

// The kinds of records, each with what its NotAfter means and how long it stays after that.
const (
	kindEvent      = "event"      // A.e<event>: its fingerprint
	kindGrant      = "grant"      // A.<grant>
	kindToken      = "token"      // A.<hash of its secret>; Left is the uses left
	kindRevocation = "revocation" // A.all, A.<app and root domain>, A.<grant>: its Version is what counts
	kindConsent    = "consent"    // A.<app, domain, actions>
	kindWindow     = "window"     // A.<trigger>-<minute>: Left is what may still be issued
	kindOnce       = "once"       // A.<grant and key>: a call that happens once, and its answer
	kindProof      = "proof"      // A.<key and ID of a proof>: taken once
	kindLedger     = "ledger"     // A.<time><random>
	// and "push", "poll" and "redirect": A.<grant>, the outbox: the sealed code; Due is when to deliver it.
)

const (
	// keepGrant is how long an event and its grants are remembered beyond their ends: much longer than maxEventAge,
	// so that P2 holds.
	keepGrant   = 7 * 24 * time.Hour
	keepToken   = 24 * time.Hour
	keepConsent = 90 * 24 * time.Hour
	keepOnce    = time.Hour   // longer than the clocks of two nodes differ: as long as a token is good, so is its key
	keepProof   = time.Minute // likewise
	// keepRevocation is longer than anything lives of a grant that was revoked, since that is neither decided nor
	// redeemed any more: a pending day, a code's hour, or a token's week.
	keepRevocation = maxLife + keepGrant
	pendingFor     = 24 * time.Hour // how long a pending grant waits for Decide
	maxDepth       = 4
	hereAll        = "all"
)

// place names where a grant lies: the account's aggregate, and the IDs of the records that could revoke it.
type placeNames struct {
	aggregate, here string
}

func (e *engine) place(account, app string, d scope.Domain) placeNames {
	return placeNames{e.aggregate(account), name16(e.keys.aggregate, "here", app, d.Root().String())}
}

func (e *engine) aggregate(account string) string {
	return name16(e.keys.aggregate, "account", account)
}

// grantData is a grant as it lies in the store.
type grantData struct {
	Trigger      string       `json:"trigger"`
	Domain       scope.Domain `json:"domain"`
	Actions      []string     `json:"actions"`
	Event        eventData    `json:"event"`
	State        string       `json:"state"`
	At           int64        `json:"at"`
	RedeemBy     int64        `json:"redeem_by,omitempty"`
	For          int64        `json:"for"`
	RedeemWithin int64        `json:"redeem_within"`
	NotAfter     int64        `json:"not_after,omitempty"`
	Uses         int          `json:"uses"`
	Deliver      Delivery     `json:"deliver"`
	Consent      Consent      `json:"consent"`
	CodeHash     string       `json:"code_hash,omitempty"`
	Revisions    [2]uint64    `json:"revisions"`
	Depth        int          `json:"depth,omitempty"`
	Stateless    bool         `json:"stateless,omitempty"`
	Key          string       `json:"key,omitempty"`
	Delegates    []string     `json:"delegates,omitempty"`
	Deeper       int          `json:"deeper"`
	Parents      []linkData   `json:"parents,omitempty"`
}

// linkData is a grant that another is derived from, and how often its app was revoked here.
type linkData struct {
	Grant   string `json:"grant"`
	Version uint64 `json:"version"`
}

type eventData struct {
	ID        string            `json:"id"`
	Operation Operation         `json:"operation"`
	Domain    scope.Domain      `json:"domain"`
	App       string            `json:"app,omitempty"`
	Text      string            `json:"text,omitempty"`
	Target    string            `json:"target,omitempty"`
	Data      map[string]string `json:"data,omitempty"`
	At        int64             `json:"at"`
	By        string            `json:"by,omitempty"`
}

func (g *Grant) record(aggregate string, version uint64, notAfter time.Time) (store.Record, error) {
	ev := &g.Event
	var parents []linkData
	for _, l := range g.parents {
		parents = append(parents, linkData{l.grant, l.version})
	}
	data, err := json.Marshal(grantData{
		Trigger: g.Trigger, Domain: g.Domain, Actions: g.Actions, State: g.State, At: g.IssuedAt.UnixMicro(),
		Event: eventData{ID: ev.ID, Operation: ev.Operation, Domain: ev.Domain, App: ev.App, Text: ev.Text, Target: ev.Target,
			Data: ev.Data, At: ev.At.UnixMicro(), By: ev.By},
		RedeemBy: unixMicro(g.RedeemBy), For: int64(g.For), RedeemWithin: int64(g.redeemWithin), NotAfter: unixMicro(g.NotAfter),
		Uses: g.Uses, Deliver: g.Deliver, Consent: g.consent, CodeHash: g.codeHash, Revisions: g.revisions, Depth: g.depth, Stateless: g.Stateless,
		Key: g.Key, Delegates: g.delegates, Deeper: g.deeper, Parents: parents,
	})
	// Left is there to be asked for by a Spend of 0: see Revoke.
	return store.Record{Kind: kindGrant, ID: aggregate + "." + g.ID, Version: version, Owner: g.Account, App: g.App, NotAfter: notAfter, Left: 1, Data: data}, err
}

func unixMicro(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func timeOf(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return micros(us)
}

// readGrant never fills gaps: a record that does not parse is an error that names it.
func readGrant(r *store.Record) (*Grant, error) {
	var d grantData
	if err := json.Unmarshal(r.Data, &d); err != nil {
		return nil, fmt.Errorf("grant: record %s %s: %w", r.Kind, r.ID, err)
	}
	if d.Domain.IsZero() || d.State == "" || r.Owner == "" || r.App == "" {
		return nil, fmt.Errorf("grant: record %s %s is not whole", r.Kind, r.ID)
	}
	ev := d.Event
	var parents []link
	for _, l := range d.Parents {
		app, ok := appOf(l.Grant)
		if !ok {
			return nil, fmt.Errorf("grant: record %s %s is not whole", r.Kind, r.ID)
		}
		parents = append(parents, link{grant: l.Grant, app: app, version: l.Version})
	}
	parent := ""
	if len(parents) > 0 {
		parent = parents[0].grant
	}
	return &Grant{
		ID: r.ID[strings.IndexByte(r.ID, '.')+1:], Account: r.Owner, App: r.App, Trigger: d.Trigger, Domain: d.Domain, Actions: d.Actions,
		Event: Event{ID: ev.ID, Operation: ev.Operation, Account: r.Owner, Domain: ev.Domain, App: ev.App, Text: ev.Text,
			Target: ev.Target, Data: ev.Data, At: micros(ev.At), By: ev.By},
		State: d.State, IssuedAt: micros(d.At), RedeemBy: timeOf(d.RedeemBy), For: time.Duration(d.For), NotAfter: timeOf(d.NotAfter),
		Uses: d.Uses, Deliver: d.Deliver, codeHash: d.CodeHash, revisions: d.Revisions, depth: d.Depth,
		redeemWithin: time.Duration(d.RedeemWithin), consent: d.Consent, Stateless: d.Stateless, Key: d.Key,
		Parent: parent, delegates: d.Delegates, deeper: d.Deeper, parents: parents,
	}, nil
}

// grantID has the app in it, so that who writes about a grant need not look whose it is: see Revoke. It has no dot, as
// neither the ID of a record that others follow nor a webhook-id may have one.
func grantID(name, app string) string {
	return name + "-" + strings.ReplaceAll(app, ".", "~")
}

// appOf is whose grant it is, if there is one with that ID, which may come from anybody.
func appOf(id string) (app string, ok bool) {
	if len(id) <= name16Len || id[name16Len] != '-' || strings.IndexByte(id, '.') >= 0 {
		return "", false
	}
	if name, err := b64.DecodeString(id[:name16Len]); err != nil || len(name) != 16 {
		return "", false
	}
	app = strings.ReplaceAll(id[name16Len+1:], "~", ".")
	return app, isApp(app)
}

// getGrant takes the whole ID of the record. The part after the "." may come from anybody: what cannot be a grant's
// asks no store.
func (e *Engine) getGrant(ctx context.Context, id string) (*Grant, uint64, error) {
	_, name, _ := strings.Cut(id, ".")
	if _, ok := appOf(name); !ok {
		return nil, 0, errNoGrant
	}
	found, err := e.store.Get(ctx, kindGrant, id)
	if err != nil {
		return nil, 0, err
	}
	if len(found) == 0 {
		return nil, 0, errNoGrant
	}
	g, err := readGrant(&found[0])
	return g, found[0].Version, err
}

var errNoGrant = fmt.Errorf("%w: no such grant", ErrUnknown)

// versions remembers the versions of revocations that are not zero, so that issuing needs no look first: a guess that
// is wrong is put right by the store's answer. What is forgotten costs one more try.
type versions struct {
	mu    sync.Mutex
	known map[string]uint64
}

const maxVersions = 1 << 16

func (v *versions) get(id string) uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.known[id]
}

func (v *versions) learn(id string, version uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.known == nil || len(v.known) >= maxVersions {
		v.known = map[string]uint64{}
	}
	v.known[id] = version
}
