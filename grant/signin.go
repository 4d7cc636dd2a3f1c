package grant

import (
	"context"
	"time"
)

// hereSignIn begins the ID, within the account's aggregate, of the revocation of its sign-ins at one app. No name16 has
// so many characters.
const hereSignIn = "signed-in-at."

// SignInRecords is for a server that signs accounts in at an app, beside the grants: where to keep it, and what ends it.
// All IDs begin with the aggregate and a ".", so that one Apply may hold them together. The Version of the two records
// of that kind is raised by RevokeAccount and by RevokeSignIns: what was begun under another one is over.
func (e *Engine) SignInRecords(account, app string) (aggregate, kind string, revocations [2]string) {
	aggregate = e.aggregate(account)
	return aggregate, kindRevocation, [2]string{aggregate + "." + hereAll, aggregate + "." + hereSignIn + app}
}

// RevokeSignIns ends all sign-ins of the account at the app, and none of its grants. One write, whatever their number.
// Those that are made afterwards live.
func (e *Engine) RevokeSignIns(ctx context.Context, account, app string) error {
	if !isName(account) || !isName(app) || len(app) > 64 {
		return invalid("ending sign-ins needs an account of 1 to %d bytes and the ID of an app", maxID)
	}
	aggregate := e.aggregate(account)
	return e.revoke(ctx, aggregate, hereSignIn+app, Entry{Account: account, App: app})
}

// Registered reports whether what the app was given at that time still holds, as far as it depends on the app: an error
// that wraps [ErrRevoked] if it is not registered, is suspended, or was removed since, also when it is there again. Any
// other error means that nobody knows.
func (e *Engine) Registered(ctx context.Context, app string, given time.Time) error {
	set, err := e.settings(ctx, e.now())
	if err != nil {
		return err
	}
	return set.gone(app, "", given.UnixMicro())
}
