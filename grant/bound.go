package grant

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

// A token that is bound to a key (see Grant.Key) is nothing in the hands of those who do not prove that they have it.
// Nobody proves anything to Use, UseFunc, Prepare and PrepareFunc.
var errKey = fmt.Errorf("%w: the token is bound to a key", ErrUnknown)

// errProof is a proof that was used before.
var errProof = fmt.Errorf("%w: the proof was used before", ErrLimited)

// maxKey bounds a thumbprint: that of SHA-512 has 86 characters.
const maxKey = 128

// UseBound is UseFunc for tokens that are bound to a key (see Grant.Key), and takes the others as well. Of a token that
// this server sealed, prove is asked before resolve: key is the thumbprint that it is bound to, empty if it is bound to
// none, and what must be proved then is for prove to say. Its error is returned as it is, and nothing is spent.
//
// The id that prove returns, such as the jti of a DPoP proof (RFC 9449 §11.1), of at most 256 bytes, is taken in the
// write that spends, once for this key and account, and kept until the time that prove returns, from which on it must
// refuse the proof as too old. A use whose id was taken before is [ErrLimited], and spends nothing. An empty id takes nothing.
func (e *Engine) UseBound(ctx context.Context, token string, prove func(key string) (id string, until time.Time, err error),
	resolve func() (scope.Scope, error)) (*Delegation, error) {
	p, want, err := e.proved(token, prove, resolve)
	if err != nil {
		return nil, err
	}
	return p.use(ctx, want)
}

// PrepareBound is to PrepareFunc what UseBound is to UseFunc. The id is taken by Spend.
func (e *Engine) PrepareBound(ctx context.Context, token string, prove func(key string) (id string, until time.Time, err error),
	resolve func() (scope.Scope, error)) (*Delegation, error) {
	p, want, err := e.proved(token, prove, resolve)
	if err != nil {
		return nil, err
	}
	return p.prepare(ctx, want)
}

func (e *Engine) proved(token string, prove func(string) (string, time.Time, error), resolve func() (scope.Scope, error)) (*pending, scope.Scope, error) {
	p := &pending{engine: e}
	t := &p.token
	if !e.keys.openToken(token, t) {
		return nil, scope.Scope{}, errSealed
	}
	id, until, err := prove(t.key)
	if err != nil {
		return nil, scope.Scope{}, err
	}
	if len(id) > maxID || id != "" && until.IsZero() {
		return nil, scope.Scope{}, invalid("the ID of a proof has at most %d bytes, and an end", maxID)
	}
	if id != "" {
		p.proof = &store.Record{Kind: kindProof, ID: t.aggregate + "." + name16(e.keys.aggregate, kindProof, t.key, id),
			Owner: t.account, App: t.app, NotAfter: until}
	}
	want, err := resolve()
	return p, want, err
}

// keyless is the refusal of a token that somebody presents without its key.
func (e *Engine) keyless(ctx context.Context, t *sealedToken) error {
	e.refuse(ctx, e.now(), refusal{t.account, t.app, t.grant, "", "unknown"})
	return errKey
}

// use is Engine.Use for a token whose use takes more than that of an ordinary one.
func (p *pending) use(ctx context.Context, want scope.Scope) (*Delegation, error) {
	d, err := p.prepare(ctx, want)
	if err != nil {
		return nil, err
	}
	if err := d.Spend(ctx, nil); err != nil {
		return nil, err
	}
	d.pending = nil // nothing more is to be done with it
	return d, nil
}

// taken takes the proof of a call that spends nothing, because it was made before.
func (p *pending) taken(ctx context.Context, now time.Time) error {
	if p.proof == nil {
		return nil
	}
	out, err := p.engine.store.Apply(ctx, now, []store.Op{store.Put(*p.proof)})
	if err == nil && !out.Applied() {
		err = errProof
	}
	return err
}

func checkKey(thumbprint string) error {
	if len(thumbprint) > maxKey || strings.Trim(thumbprint, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-") != "" {
		return invalid("a key's thumbprint is base64url of at most %d characters", maxKey)
	}
	return nil
}
