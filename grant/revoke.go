package grant

import (
	"context"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

// Revoke ends one grant of the account: its code, if that still waits, and its token. One write; the next use on any
// node fails (P5). [ErrUnknown] if the account has no such grant. Revoking again does no harm.
func (e *Engine) Revoke(ctx context.Context, account, grant string) error {
	aggregate := e.aggregate(account)
	g, _, err := e.getGrant(ctx, aggregate+"."+grant)
	if err != nil {
		return err
	}
	return e.revokeGrant(ctx, aggregate, g)
}

func (e *Engine) revokeGrant(ctx context.Context, aggregate string, g *Grant) error {
	now := e.now()
	id := aggregate + "." + g.ID
	// Version 0: who revokes again and again writes one entry.
	return e.revoke(ctx, now, aggregate, store.Record{ID: id, NotAfter: g.end(now).Add(keepGrant)},
		Entry{Account: g.Account, App: g.App, Grant: g.ID, Scope: g.Scope().String()},
		store.Delete(string(g.Deliver), id, store.AnyVersion))
}

// RevokeApp ends all that the account granted to the app here: in the domain's root, and so in everything below that.
// Also a remembered consent. One write, whatever their number. Grants that are made afterwards live.
func (e *Engine) RevokeApp(ctx context.Context, account, app string, here scope.Domain) error {
	if !isName(account) || !isName(app) || here.IsZero() {
		return invalid("revoking needs an account and an app, of 1 to %d bytes, and a domain", maxID)
	}
	at := e.place(account, app, here)
	return e.revoke(ctx, e.now(), at.aggregate, store.Record{ID: at.aggregate + "." + at.here, Version: store.AnyVersion},
		Entry{Account: account, App: app, Scope: here.Root().String()})
}

// RevokeAccount ends all that the account granted to anybody, anywhere, and every remembered consent. One write,
// whatever their number.
func (e *Engine) RevokeAccount(ctx context.Context, account string) error {
	if !isName(account) {
		return invalid("revoking needs an account of 1 to %d bytes", maxID)
	}
	aggregate := e.aggregate(account)
	return e.revoke(ctx, e.now(), aggregate, store.Record{ID: aggregate + "." + hereAll, Version: store.AnyVersion}, Entry{Account: account})
}

func isName(s string) bool { return s != "" && len(s) <= maxID && utf8.ValidString(s) }

// revoke adds one to a version, without a look first. What was made under the version before is over.
// An account's and an app's revocations are kept for good: a version that began anew would revive what it once ended.
func (e *Engine) revoke(ctx context.Context, now time.Time, aggregate string, r store.Record, entry Entry, more ...store.Op) error {
	entry.At, entry.What = now, "revoked"
	r.Kind, r.Owner, r.App = kindRevocation, entry.Account, entry.App
	out, err := e.store.Apply(ctx, now, append([]store.Op{store.Put(r), e.ledgerOp(aggregate, &entry)}, more...))
	switch {
	case err != nil:
		return err
	case !out.Applied() && out.Op == 0 && r.Version == 0: // revoked before
		return nil
	case !out.Applied():
		return fmt.Errorf("grant: the store refused a revocation: %v", out.Reason)
	}
	e.tell(ctx, &entry)
	return nil
}

// RevokeToken ends the grant of a token or of a code, for the app that holds it: RFC 7009. What is not that app's, or
// not known, is [ErrUnknown].
func (e *Engine) RevokeToken(ctx context.Context, app string, credential Secret) error {
	var t sealedToken
	id := ""
	if e.keys.openToken(credential.Reveal(), &t, nil) {
		id = t.aggregate + "." + t.grant
	} else if c, ok := e.keys.openCode(credential.Reveal()); ok {
		id = c.aggregate + "." + c.grant
	} else {
		return errSealed
	}
	g, _, err := e.getGrant(ctx, id)
	if err != nil {
		return err
	}
	if g.App != app {
		return fmt.Errorf("%w: another app's", ErrUnknown)
	}
	return e.revokeGrant(ctx, store.Aggregate(id), g)
}
