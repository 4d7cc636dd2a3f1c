package grant

import (
	"context"
	"fmt"
	"unicode/utf8"

	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

// Revoke ends one grant of the account: its code, if that still waits, and its token. One write, without a look first;
// the next use on any node fails (P5). [ErrUnknown] if the account has no such grant. Revoking again does no harm, and
// writes nothing. What has ended by this node's clock is revoked all the same, as long as it is remembered (7 days):
// another's may be behind.
func (e *Engine) Revoke(ctx context.Context, account, grant string) error {
	app, ok := appOf(grant)
	if !ok || !isName(account) {
		return errNoGrant
	}
	now, aggregate := e.now(), e.aggregate(account)
	id := aggregate + "." + grant
	entry := Entry{At: now, What: "revoked", Account: account, App: app, Grant: grant}
	// A Spend of 0 asks whether there is such a grant, and takes nothing. It is asked about the time at which what ends
	// now began to be kept.
	const grantAt, revocationAt = 0, 1
	out, err := e.store.Apply(ctx, now.Add(-keepGrant), []store.Op{
		store.Spend(kindGrant, id, 0, nil),
		store.Put(store.Record{Kind: kindRevocation, ID: id, Owner: account, App: app, NotAfter: now.Add(keepRevocation)}),
		e.ledgerOp(aggregate, &entry),
		store.Delete(string(Push), id, store.AnyVersion),
		store.Delete(string(Poll), id, store.AnyVersion),
		store.Delete(string(Redirect), id, store.AnyVersion),
	})
	switch {
	case err != nil:
		return err
	case out.Applied():
		e.tell(ctx, &entry)
		return nil
	case out.Op == revocationAt: // revoked before
		return nil
	case out.Op == grantAt && (out.Reason == store.Missing || out.Reason == store.Expired):
		return errNoGrant
	}
	return errRefused(out)
}

// RevokeApp ends all that the account granted to the app here: in the domain's root, and so in everything below that.
// Also a remembered consent. One write, whatever their number. Grants that are made afterwards live.
func (e *Engine) RevokeApp(ctx context.Context, account, app string, here scope.Domain) error {
	if !isName(account) || !isName(app) || here.IsZero() {
		return invalid("revoking needs an account and an app, of 1 to %d bytes, and a domain", maxID)
	}
	at := e.place(account, app, here)
	return e.revoke(ctx, at.aggregate, at.here, Entry{Account: account, App: app, Scope: here.Root().String()})
}

// RevokeAccount ends all that the account granted to anybody, anywhere, and every remembered consent. One write,
// whatever their number.
func (e *Engine) RevokeAccount(ctx context.Context, account string) error {
	if !isName(account) {
		return invalid("revoking needs an account of 1 to %d bytes", maxID)
	}
	return e.revoke(ctx, e.aggregate(account), hereAll, Entry{Account: account})
}

func isName(s string) bool { return s != "" && len(s) <= maxID && utf8.ValidString(s) }

// revoke adds one to a version, without a look first. What was made under the version before is over.
// An account's and an app's revocations are kept for good: a version that began anew would revive what it once ended.
func (e *Engine) revoke(ctx context.Context, aggregate, what string, entry Entry) error {
	entry.At, entry.What = e.now(), "revoked"
	out, err := e.store.Apply(ctx, entry.At, []store.Op{
		store.Put(store.Record{Kind: kindRevocation, ID: aggregate + "." + what, Version: store.AnyVersion, Owner: entry.Account, App: entry.App}),
		e.ledgerOp(aggregate, &entry),
	})
	switch {
	case err != nil:
		return err
	case !out.Applied():
		return errRefused(out)
	}
	e.tell(ctx, &entry)
	return nil
}

func errRefused(out store.Outcome) error {
	return fmt.Errorf("grant: the store refused a revocation: %v of operation %d", out.Reason, out.Op)
}

// RevokeToken ends the grant of a token or of a code, for the app that holds it: RFC 7009. It is Revoke, of the account
// and the grant that are sealed in there. What is not that app's, or not known, is [ErrUnknown]; what is another app's,
// or forged, is so without a call to the store.
func (e *Engine) RevokeToken(ctx context.Context, app string, credential Secret) error {
	var t sealedToken
	account, grant := "", ""
	if e.keys.openToken(credential.Reveal(), &t) {
		account, grant = t.account, t.grant
	} else if c, ok := e.keys.openCode(credential.Reveal()); ok {
		account, grant = c.account, c.grant
	} else {
		return errSealed
	}
	if whose, _ := appOf(grant); whose != app {
		return fmt.Errorf("%w: another app's", ErrUnknown)
	}
	return e.Revoke(ctx, account, grant)
}
