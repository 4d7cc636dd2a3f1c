package grant

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

// Prepare is Use for callers that spend in a transaction of their own: it verifies all of a token that needs neither
// the store nor Permit, and returns a Delegation that is not spent yet. Nothing may be done with it before
// [Delegation.Spend] has returned nil. Its errors are those of Use.
func (e *Engine) Prepare(ctx context.Context, token string, want scope.Scope) (*Delegation, error) {
	return e.PrepareFunc(ctx, token, func() (scope.Scope, error) { return want, nil })
}

// PrepareFunc is Prepare for a scope that must be looked up, as UseFunc is Use.
func (e *Engine) PrepareFunc(ctx context.Context, token string, resolve func() (scope.Scope, error)) (*Delegation, error) {
	p := &pending{engine: e}
	t := &p.token
	if !e.keys.openToken(token, t) {
		return nil, errSealed
	}
	if t.key != "" {
		return nil, e.keyless(ctx, t)
	}
	want, err := resolve()
	if err != nil {
		return nil, err
	}
	return p.prepare(ctx, want)
}

func (p *pending) prepare(ctx context.Context, want scope.Scope) (*Delegation, error) {
	e, t := p.engine, &p.token
	now := e.now()
	if err := t.allows(now, want); err != nil {
		return nil, p.refuse(ctx, now, want, err)
	}
	p.ids = t.ids()
	p.links, _ = t.links()
	t.secret = [32]byte{} // a Delegation holds no secret (P6)
	d := t.delegation(0)
	d.Domain, d.Scope, d.pending = want.Domain(), want, p
	return d, nil
}

// pending is what a Delegation that Prepare made needs to be spent.
type pending struct {
	mu     sync.Mutex // held by each call
	engine *Engine
	token  sealedToken // without its secret
	ids    recordIDs   // of the records that decide
	links  []link      // likewise, of a derived token
	// entry is the ledger's, and ledger its ID: the same one however often Spend is tried, so that of all tries at
	// most one is ever committed.
	entry  Entry
	ledger string
	lost   bool // the store failed at the last try, which may have been applied
	spent  atomic.Bool
	once   *once
	proof  *store.Record // that the token's key is there; nil: nothing to be taken once
	repeat *repeat       // why the last call was refused, if that was why
}

type once struct {
	id      string
	request string
	at      time.Time
}

// begin takes the right to do something with d.
func (d *Delegation) begin() (*pending, error) {
	if d.pending == nil {
		return nil, invalid("the Delegation does not come from Prepare: its use is spent, or never was one")
	}
	if !d.pending.mu.TryLock() {
		return nil, invalid("another call with this Delegation is under way")
	}
	return d.pending, nil
}

// Spent reports whether the use is spent: always of a Delegation from Use, and of one from Prepare (or a handler with
// authz.SpendInHandler) when Spend last returned nil. A transaction that did not commit afterwards makes it not so,
// which nobody tells Spent. It is for a Delegation itself, not for copies that were made before.
func (d *Delegation) Spent() bool { return d.pending == nil || d.pending.spent.Load() }

// Spend spends the use of a Delegation from Prepare in st, such as sqlstore.Tx of the transaction that also holds its
// effect: both are committed, or neither is. Nil is the engine's own store, outside any transaction. It asks Permit,
// with ctx, before its first statement, and does the rest in one Apply, as Use does; its errors are those of Use, and
// [ErrInvalid] for a key that was used before: see Repeat. After a refusal the transaction is as it was. After another error roll it back.
//
// Once it has returned nil, d.Left is what is left, and another call is [ErrInvalid] and spends nothing. Only when the
// transaction was rolled back, such as by a serialization failure or a deadlock, or the store failed, may the whole be
// tried again with the same Delegation, in a new transaction: however many tries there are, at most one is ever
// committed, since all write the same ledger entry. So if a commit seemed to fail and was done after all, the next try
// is ErrInvalid and [Delegation.Spent] stays true: the effect is there. If it was Spend itself whose answer was lost,
// the next try returns nil: it was this use. Calls at the same time are ErrInvalid.
//
// A refusal is about the moment of the try alone: when the token was revoked, or has ended, after a try of which nobody
// knows whether it was committed, the next one is that refusal, and Spent is false, whatever became of the first. The
// effect itself, which was committed with it or not, tells.
//
// Permit should look with the transaction (put it into ctx) or with a connection that it is sure to get: a pool whose
// connections are all held by callers of Spend has none left. Observe is told before the commit.
func (d *Delegation) Spend(ctx context.Context, st store.Store) error {
	p, err := d.begin()
	if err != nil {
		return err
	}
	defer p.mu.Unlock()
	e, now := p.engine, p.engine.now()
	if p.ledger == "" {
		t := &p.token
		p.entry = Entry{At: now, What: "used", Account: t.account, App: t.app, Grant: t.grant, Scope: d.Scope.String()}
		p.entry.ID = e.entryID(now)
		p.ledger = t.aggregate + "." + p.entry.ID
	}
	again := p.spent.Load()
	own := st == nil
	if own {
		st = e.store
	}
	left, err := p.spend(ctx, st, now, d.Scope)
	if own && p.lost && ctx.Err() == nil {
		left, err = p.spend(ctx, st, now, d.Scope) // what was lost may only have been the answer
	}
	switch {
	case errors.Is(err, errWritten) && again:
		return invalid("the use is spent: Spend is for one time")
	case errors.Is(err, errWritten): // by a try whose answer was lost
		if left, _, err = e.left(ctx, st, p.token.tokens(p.ids.token, p.links)); err != nil {
			return err
		}
	case err != nil:
		p.spent.Store(false)
		d.Left = p.token.delegation(0).Left
		return p.refuse(ctx, now, d.Scope, err)
	}
	p.spent.Store(true)
	d.Left = p.token.delegation(left).Left
	p.entry.Left = d.Left
	entry := p.entry
	e.tell(ctx, &entry)
	return nil
}

// errWritten is a ledger entry that is there already.
var errWritten = errors.New("grant: the use is in the ledger")

// spend is one try. Its own ledger entry is asked for before what it would spend: a use that is already its own is
// never mistaken for one too many.
func (p *pending) spend(ctx context.Context, st store.Store, now time.Time, want scope.Scope) (left int64, err error) {
	e, t := p.engine, &p.token
	p.lost, p.repeat = false, nil
	if err := t.allows(now, want); err != nil {
		return 0, err
	}
	set, err := e.settings(ctx, now)
	if err != nil {
		return 0, err
	}
	cost, err := e.permitted(ctx, set, t, want)
	if err != nil {
		return 0, err
	}
	ops := append(p.revocations(), p.entry.put(p.ledger, appendEntry(nil, &p.entry)))
	if p.once != nil {
		p.once.at = now
		r, err := p.remember(onceData{}, 0)
		if err != nil {
			return 0, err
		}
		ops = append(ops, store.Put(r))
	}
	if p.proof != nil {
		ops = append(ops, store.Put(*p.proof))
	}
	for _, id := range t.tokens(p.ids.token, p.links) {
		ops = append(ops, store.Spend(kindToken, id, cost, nil))
	}
	out, err := st.Apply(ctx, now, ops)
	switch {
	case err != nil:
		p.lost = true
		return 0, err
	case out.Applied():
		return out.Left, nil
	}
	switch ops[out.Op].Record.Kind {
	case kindRevocation:
		return 0, ErrRevoked
	case kindLedger:
		return 0, errWritten
	case kindOnce:
		if err := p.taken(ctx, now); err != nil {
			return 0, err
		}
		return 0, p.repeated(ctx, st, now)
	case kindProof:
		return 0, errProof
	}
	return 0, refused(out, want, cost)
}

// revocations ask whether the grant, the app or all was revoked.
func (p *pending) revocations() []store.Op {
	return p.token.checks(append(make([]store.Op, 0, 7+3*len(p.links)),
		store.Check(kindRevocation, p.ids.all, p.token.versions[0]),
		store.Check(kindRevocation, p.ids.here, p.token.versions[1]),
		store.Check(kindRevocation, p.ids.grant, 0)), p.links)
}

// refuse puts a refusal on record.
func (p *pending) refuse(ctx context.Context, now time.Time, want scope.Scope, err error) error {
	reason := Reason(err)
	if err == errProof {
		reason = "unknown"
	}
	if reason != "" {
		p.engine.refuse(ctx, now, refusal{p.token.account, p.token.app, p.token.grant, want.String(), reason})
	}
	return err
}

// Check asks whether Spend would go ahead, and spends nothing: Permit, and after Once also, in one look into the
// engine's own store, revocations and whether the key was used before (see Repeat). It does not ask for the count,
// since what is there now may be gone when it is spent.
func (d *Delegation) Check(ctx context.Context) error {
	p, err := d.begin()
	if err != nil {
		return err
	}
	defer p.mu.Unlock()
	now := p.engine.now()
	return p.refuse(ctx, now, d.Scope, p.check(ctx, now, d.Scope))
}

func (p *pending) check(ctx context.Context, now time.Time, want scope.Scope) error {
	p.repeat = nil
	if err := p.token.allows(now, want); err != nil {
		return err
	}
	set, err := p.engine.settings(ctx, now)
	if err != nil {
		return err
	}
	if _, err := p.engine.permitted(ctx, set, &p.token, want); err != nil || p.once == nil {
		return err
	}
	st := p.engine.store
	ops := append(p.revocations(), store.Check(kindOnce, p.once.id, 0))
	out, err := st.Apply(ctx, now, ops)
	switch {
	case err != nil, out.Applied():
		return err
	case ops[out.Op].Record.Kind == kindRevocation:
		return ErrRevoked
	}
	if err := p.taken(ctx, now); err != nil {
		return err
	}
	return p.repeated(ctx, st, now)
}

// SpendOnce is [Delegation.Once] and Spend in the engine's own store, for callers that lose answers, such as over a network: a use
// that was spent under the same key, by whatever node, is this use, and not another one. Then again is true, and d.Left
// what is left now. The use is spent when the error is nil, which never says that something was done with it. Another
// request with the same key is [ErrInvalid].
func (d *Delegation) SpendOnce(ctx context.Context, key string, request [32]byte) (again bool, err error) {
	if err := d.Once(key, request); err != nil {
		return false, err
	}
	err = d.Spend(ctx, nil)
	// The key is written in the same Apply that spends: where it is, the use is spent.
	if state, _, _ := d.Repeat(); err == nil || state != "open" && state != "over" {
		return false, err
	}
	p, err := d.begin()
	if err != nil {
		return false, err
	}
	defer p.mu.Unlock()
	left, there, err := p.engine.left(ctx, p.engine.store, p.token.tokens(p.ids.token, p.links))
	if err != nil {
		return false, err
	}
	if !there {
		return false, fmt.Errorf("%w: no such token", ErrUnknown)
	}
	p.repeat = nil
	p.spent.Store(true)
	d.Left = p.token.delegation(left).Left
	return true, nil
}

// maxOnce bounds a key of Once.
const maxOnce = 255

// Once makes Spend spend at most once for all calls that have the same key and the same grant: it remembers the key in
// the write that spends, until the token's end. Each further call is [ErrInvalid]; see Repeat. The key, of 1 to 255 bytes, is the
// app's to choose; request is a hash of what it asks for, by which another request with the same key is told apart, as
// is another token of the grant. Call it before Check and Spend.
func (d *Delegation) Once(key string, request [32]byte) error {
	if key == "" || len(key) > maxOnce {
		return invalid("a key has 1 to %d bytes", maxOnce)
	}
	p, err := d.begin()
	if err != nil {
		return err
	}
	defer p.mu.Unlock()
	if p.ledger != "" {
		return invalid("Once comes before Spend")
	}
	h := sha256.New()
	h.Write(request[:])
	h.Write([]byte(p.ids.token))
	p.once = &once{id: p.token.aggregate + "." + name16(p.engine.keys.aggregate, kindOnce, p.token.grant, key), request: b64.EncodeToString(h.Sum(nil))}
	return nil
}

// onceData is what is remembered of a call that happens once. Request tells it from others with the same key.
type onceData struct {
	Request string `json:"request"`
	At      int64  `json:"at"`
	Over    bool   `json:"over,omitempty"`
	Answer  []byte `json:"answer,omitempty"`
}

func (p *pending) remember(o onceData, version uint64) (store.Record, error) {
	o.Request, o.At = p.once.request, p.once.at.UnixMicro()
	data, err := json.Marshal(o)
	return store.Record{Kind: kindOnce, ID: p.once.id, Version: version, Owner: p.token.account, App: p.token.app,
		NotAfter: micros(p.token.notAfter), Data: data}, err
}

// repeated says what is remembered of the call that was first.
func (p *pending) repeated(ctx context.Context, st store.Store, now time.Time) error {
	found, err := st.Get(ctx, kindOnce, p.once.id)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return fmt.Errorf("grant: the store has and has not the record %s %s", kindOnce, p.once.id)
	}
	var o onceData
	if err := json.Unmarshal(found[0].Data, &o); err != nil {
		return fmt.Errorf("grant: record %s %s: %w", kindOnce, p.once.id, err)
	}
	if o.Request == "" || o.At == 0 {
		return fmt.Errorf("grant: record %s %s is not whole", kindOnce, p.once.id)
	}
	switch r := (&repeat{"open", max(0, now.Sub(micros(o.At))), o.Answer}); {
	case o.Request != p.once.request:
		p.repeat = &repeat{state: "other"}
	case o.Over:
		r.state = "over"
		p.repeat = r
	default:
		p.repeat = r
	}
	return p.repeat
}

// A repeat is the error of a call whose key was used before.
type repeat struct {
	state  string
	age    time.Duration
	answer []byte
}

func (r *repeat) Error() string {
	switch r.state {
	case "other":
		return "grant: invalid: the key was used for another request"
	case "over":
		return "grant: invalid: the key was used before"
	}
	return "grant: invalid: a call with the same key is under way"
}

func (r *repeat) Unwrap() error { return ErrInvalid }

// Repeat says what is known of the first call, when the last Check or Spend was [ErrInvalid] because its key (see Once)
// was used before. "open": it is under way, or what became of it is lost. "over": Answered said so, and answer is what
// it was answered, or nil if that was not kept. "other": it was another request, and nothing more is told of it.
// Empty: no such thing. Age is how long ago it began.
func (d *Delegation) Repeat() (state string, age time.Duration, answer []byte) {
	if d.pending == nil {
		return "", 0, nil
	}
	d.pending.mu.Lock()
	defer d.pending.mu.Unlock()
	if r := d.pending.repeat; r != nil {
		return r.state, r.age, r.answer
	}
	return "", 0, nil
}

// Answered remembers, in the engine's own store, what was answered to a call with a key (see Once): later ones get it
// from Repeat. The answer lies there in the clear, in the account's aggregate, until an hour after the token's
// end; nil says that it is over and that the answer is not kept. Call it once, after Spend and the commit. If nothing
// is remembered of the call, because its transaction was rolled back, that is [ErrInvalid].
func (d *Delegation) Answered(ctx context.Context, answer []byte) error {
	p, err := d.begin()
	if err != nil {
		return err
	}
	defer p.mu.Unlock()
	if p.once == nil || p.ledger == "" {
		return invalid("Answered comes after Once and Spend")
	}
	r, err := p.remember(onceData{Over: true, Answer: answer}, 1)
	if err != nil {
		return err
	}
	out, err := p.engine.store.Apply(ctx, p.engine.now(), []store.Op{store.Put(r)})
	if err == nil && !out.Applied() {
		err = invalid("no call with this key is under way: the use was not committed, or it was answered before")
	}
	return err
}
