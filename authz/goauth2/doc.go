// Package goauth2 brings Behest into a server that runs on github.com/go-oauth2/oauth2/v4, and closes the holes of
// that library which can be closed from outside.
//
// The laws:
//
//  1. [Wrap] adds grants and takes nothing away: what go-oauth2 knows is answered by go-oauth2, with the hooks it has,
//     from a request that is as it came.
//  2. A delegation token is never a user's full token. To go-oauth2 it is no token at all, unless authz's Require has
//     let this very request pass with this very token and [Show] says so. Nothing here spends a use.
//  3. What is redeemed is redeemed once. Authorization codes and refresh tokens are consumed in the [store.Store], in
//     one write, however slow or careless the token store is; one that comes back after ten seconds ends all that came
//     of it.
//  4. Their token store sees hashes: of a code, an access or a refresh token only its SHA-256.
//  5. What a client sends is answered with the code of the RFC, never with a 500 or a panic.
//  6. Nothing is global, and nothing runs in the background.
//
// An app of Behest is a client of both: register it in go-oauth2's client store and with [authz.Config], under one ID
// and with one secret, and one and the same Authorization header serves for all grants. Behest's grants ask Behest's
// apps, so that suspending an app holds; go-oauth2's grants ask its client store. A client that one of them does not
// know is invalid_client there.
//
// Format: in the token store a secret is "access-sha256-", "refresh-sha256-" or "code-sha256-" and the SHA-256 in
// unpadded base64url. In the store, records of the kinds goauth2code and goauth2refresh say of each code and refresh
// token what family it is of and when it was redeemed, goauth2family what is alive of a family, goauth2access which
// JWTs there are. They go when what they are about has expired, some with every few writes.
//
// Use, with the srv and the tokens that are there already:
//
//	srv := server.NewDefaultServer(manager) // and its hooks
//	err := goauth2.Harden(srv, goauth2.Config{Tokens: tokens, Store: st})
//	mux.Handle("POST /oauth/token", goauth2.Wrap(srv, az))
//	az.Routes(mux.Handle) // introspection, revocation and polling for apps
//	mux.Handle("POST /groups/{group}/messages", az.Require("group:{group}/message.write")(goauth2.Show(postMessage)))
//	info, err := srv.ValidationBearerToken(r) // in postMessage: the delegation's account, app and scope
//
// # What Harden closes
//
// Each has a test that shows it in go-oauth2 v4.5.4 as it comes, and closed here:
//
//	TestHoleRefreshAuthenticatesNobody  refresh_token asks for no client, nor whose token it is
//	TestHoleRefreshWidensScope          a refreshed token has whatever scope is asked for
//	TestHoleCodeRedeemedTwice           a code is good for all who redeem it at the same time
//	TestHoleRefreshRedeemedTwice        and so is a refresh token
//	TestHoleReuseUndetected             a stolen refresh token that comes back ends nothing
//	TestHoleCodeReplayed                nor does a code
//	TestHoleRevocationHalf              the refresh token outlives the access token that is revoked, and the other way round
//	TestHoleClearText                   tokens lie in the token store as they are
//	TestHolePKCE                        PKCE is optional, "plain" the default
//	TestHoleRedirectURI                 redirect URIs are compared by the end of their host
//	TestHoleOpenRedirect                errors go to any redirect_uri
//	TestHoleServerErrors                500 for an unknown client, an expired token, any wrapped error
//	TestHoleUnhashablePanics            a panic for an error of a type that cannot be a map's key
//	TestHoleStatuses                    invalid_grant is 401, invalid_client has no challenge
//	TestHoleSecretInQuery               secrets, parameters and bearer tokens are taken from the query
//	TestHoleRepeatedParameters          a parameter that is there twice is taken once
//	TestHoleBearer                      "bearer" is refused for its case, and the look-up eats the form of the handler
//	TestHoleBasicEncoding               Basic credentials are not form-decoded
//	TestHoleDefaultGrants               implicit and password are on
//	TestHolePasswordFirst               passwords are tried before the client is known, also when the grant is off
//	TestHoleAnyScope                    any scope is granted
//	TestHoleNoSecret                    a confidential client without a secret is let in
//	TestHoleTokenAsCode                 an access token as a code is a 500
//	TestHoleSameJWT                     two JWTs of one second are one, and the later one's authority counts
//
// What stays open: an ExtractExtensionHandler that calls GetExtension().Set panics for client_credentials, which has no
// map (use SetExtension); GetErrorData, called by yourself, panics for an error that cannot be hashed; the file and
// memory stores of go-oauth2 stall while many tokens expire; client secrets lie in the client store as it keeps them
// (implement oauth2.ClientPasswordVerifier).
package goauth2
