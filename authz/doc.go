// Package authz is the server: it lets an app act as a user, because that user just asked.
//
// The laws:
//
//  1. No operation, no token. A delegation token exists only because the account in it did, there, what a [grant.Trigger] predetermined.
//  2. What travels is a one-time code, never a usable token. The app redeems it with its own secret or key.
//  3. A handler behind [Server.Require] runs only after a use was spent, and acts as the delegation says: for that account, through that app, in that domain.
//     With [SpendInHandler] it spends the use itself, together with its effect, and what it answers before that is no success.
//  4. The client learns the code, the log the cause. The holder of a real token learns why it failed; a stranger gets one answer, whatever was wrong.
//  5. A forged token costs no look into the store. A store or a Permit that does not answer lets nothing through.
//  6. New starts nothing and touches nothing global. Run owns every goroutine.
//
// The endpoints, below the issuer and Config.Prefix:
//
//	GET  /oauth2/authorize   RFC 6749, only with Config.Account: the page on which people sign in to another site. POST is its form
//	POST /oauth2/token       RFC 6749: the operation grant (urn:behest:grant-type:operation, parameter code) and client_credentials;
//	                         RFC 8693: token exchange, for a narrower token; with Config.Account also authorization_code and refresh_token
//	POST /oauth2/introspect  RFC 7662
//	POST /oauth2/revoke      RFC 7009
//	POST /oauth2/use         spends a use, for a resource server that does not share the store: see UseEndpoint
//	GET  /oauth2/jwks        RFC 7517, the keys of stateless tokens, if there are such: see JWTSigner
//	GET  /oauth2/grants      the app's waiting grants: ?wait=30s is a long poll
//	GET  /.well-known/oauth-authorization-server  RFC 8414
//	GET  /.well-known/oauth-protected-resource    RFC 9728; each challenge of Require names it
//
// Use:
//
//	az, err := authz.New(authz.Config{Issuer: issuer, Permit: mayDo, Apps: apps, Triggers: triggers})
//	go az.Run(ctx)
//	az.Routes(mux.Handle)
//	mux.Handle("POST /groups/{group}/messages", az.Require("group:{group}/message.write")(postMessage))
//	issued, err := az.Emit(ctx, grant.Event{ID: msg.ID, Operation: grant.Mention, Account: user, Domain: group, App: "bookbot", Text: msg.Text})
//	d, ok := authz.FromContext(r.Context()) // in postMessage: d.Account, "via" d.App, in d.Domain
//
// # Routers
//
// Routes takes a registering function, so that any router will do. Require reads the path values that http.ServeMux
// sets; other routers need a middleware that sets them. gorilla/mux, and Gin likewise with c.Params, as long as they
// match decoded paths, which is their default:
//
//	func PathValues(next http.Handler) http.Handler {
//		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
//			for name, value := range mux.Vars(r) {
//				r.SetPathValue(name, value)
//			}
//			next.ServeHTTP(w, r)
//		})
//	}
//
// chi (chi.RouteContext(r.Context()).URLParams) and Echo (c.ParamNames, c.Param) match r.URL.RawPath where there is
// one, and leave their values encoded then: set url.PathUnescape of the value if r.URL.RawPath is not empty, and the
// value itself if it is. To decode always would make one group's name into another's.
//
// # Exactly once
//
// A use is spent before the handler runs: a process that dies in between has spent it for nothing, and a client whose
// connection breaks does not know. There is a remedy for each, and both together.
//
// With [SpendInHandler] the handler spends the use in the transaction of its effect. Both are committed, or neither is.
//
// With the request header Idempotency-Key (draft-ietf-httpapi-idempotency-key-header), such as "8e03978e-40d5": a
// string of 1 to 255 characters, also taken without its quotes. It holds for any method, on every route of Require, and
// a key is the grant's: another grant may use it for something else. The first request with a key runs; the key is
// written together with the use, the answer afterwards. Each retry with the same method, URL and body gets that answer,
// with "Idempotency-Replayed: true": the handler does not run again and no use is spent, so also after the last one.
// What else may be answered, always with the error invalid_request, and with an error_reason where one is named:
//
//	400                   the header is malformed, too long or there twice
//	409 key_in_flight     the first request is not over. Retry-After is as long as that has taken, 1 to 60 seconds. If
//	                      its server has died, or the store could not take the answer, this is all that is said until
//	                      the token expires: whether it was done is not known, and with this key it is never done again
//	409 answer_not_kept   it was carried out, or broken off by a panic, and its answer is not kept: a body of more than
//	                      64 KiB, a header of more than 8 KiB, a connection that was taken over, a handler that said
//	                      nothing because its client had gone
//	413                   the body has more than 1 MiB, which is how much of it is compared
//	422 key_reused        the same key with another method, URL (the host does not count) or body
//
// An answer is kept whatever its status, 5xx included: the use is spent, and half of the work may be done. Only with
// SpendInHandler a request that has not committed leaves no key behind, and a retry of it runs. A retry must have all
// that a use must, but for the count: for a token that is expired or revoked, or when rights have changed, it gets that
// refusal instead of the answer. So keys live as long as their token.
//
// The answer is held back until the handler returns, flushes or exceeds 64 KiB, so that who has read it to its end
// finds it recorded. Of its header it has what the handler has set itself, without cookies and trailers. It lies in the
// store, in the clear, as a record of kind "once" in the account's aggregate, and may hold what the user sees; it is
// purged an hour after the token's end. Until then it takes its room, also for tokens without a count and for actions
// that cost nothing: limit the rate of such routes.
//
// # Tokens bound to a key
//
// An app that sends a DPoP proof (RFC 9449) when it redeems a code gets a token that is bound to that key: the answer's
// token_type is DPoP, and Require takes it with the scheme DPoP and a proof, and not as Bearer. [App].KeyBound makes an
// app do so, with JWKS by a registered key: what its webhook has brought is worth nothing without the key then.
//
// A proof names method and URL, has a nonce of the server's (401 or 400 use_dpop_nonce, with the header DPoP-Nonce, until
// it has), an iat within 5 minutes of the server's clock, the hash of the token where there is one, and a jti that is
// taken once on all servers: in the write that spends, where a token is used. The URL's scheme and host are the Issuer's,
// whatever the Host header says, and its path is the one that came over the wire: a proxy must leave that as it is.
//
// # Two servers
//
// Servers with one Key and one Store act as one: a code issued by the one is redeemed at the other, once; a token is
// spent on both against one count; a revocation on one holds for the next use on the other. Each may Run. What one
// issues the others find within 250 ms, or at once with a [Waker].
//
// Apps and triggers are those of the Config, and what [Server.Change] has said since, which lies in the store and goes
// before the Config. A change made on one server holds on all of them when the call returns: clients authenticate by
// it, deliveries go by it at their next try, Require goes by it. Each server looks once a second, in Run, or when it is
// called and has not looked for 3 s; a server that cannot ask its store for longer than that answers 503 until it can.
//
//	err := az.Change(ctx, authz.Change{SuspendApps: []string{"bookbot"}, By: admin}) // tokens, codes, deliveries: all of it, everywhere
//	err = az.Change(ctx, authz.Change{ResumeApps: []string{"bookbot"}, By: admin})   // and what has not expired works again
//	err = az.Change(ctx, authz.Change{Apps: []authz.App{newApp}, Triggers: []grant.Trigger{newTrigger}, By: admin})
//
// # Resource servers in another process
//
// An API that does not share the store is guarded by a [Remote], with the same Require: it spends each use by POST
// /oauth2/use, as a client that is registered with Introspect.
//
// What was never to be counted need not be asked about. A trigger that is Stateless, with uses unlimited and a life of at
// most five minutes, gives a JWT access token (RFC 9068), if there is a Config.JWTAudience: the URL of those resource
// servers. They verify it alone, by the issuer's jwks_uri, with a Remote or with other software; the server's own Require
// takes none. What is given up is what the store would have told: uses are not in the ledger, Permit is asked only when
// the grant is issued, and a revocation, of whatever, holds when the token expires. The token names the account, to the
// app as well, so the app must be one with RealNames.
//
//	Triggers:    []grant.Trigger{{App: "bookbot", On: grant.Mention, In: "group:*", Allow: reads, Stateless: true, Uses: grant.Unlimited, For: 2 * time.Minute}},
//	JWTAudience: "https://files.social.example",
//
//	remote, err := authz.NewRemote(authz.RemoteConfig{Issuer: issuer, Resource: "https://files.social.example"}) // there
//
// # Token exchange
//
// An app that has another one do a part of its work hands on no more than that needs. It exchanges its delegation token
// for a narrower one, which it may give away; the other one, if the trigger names it in Delegates, exchanges that for a
// token of its own, by which it knows the user under its own name, and is named in the ledger. Each use of what was
// exchanged is a use of all that it came from, and all of it ends together. See [TokenEndpoint]:
//
//	POST /oauth2/token  grant_type=urn:ietf:params:oauth:grant-type:token-exchange&subject_token=bhst_…
//	  &subject_token_type=urn:ietf:params:oauth:token-type:access_token&scope=group:42/thread:7/message.write&expires_in=60
//	  &authorization_details=[{"type":"social_operation","uses":2}]
//
// # Signing in
//
// With Config.Account people can sign in to an app with their account here: authorization_code with PKCE (RFC 7636,
// S256, for every client) and refresh_token. That tells the app who they are, and lets it do nothing: Require takes
// delegation tokens alone, and these are none. The app gets sub, its own name for the account, and with the scope
// profile, which people see on the page, username, the account's own name. There is no other scope, and no ID token.
// Apps with the AuthMethod "none", on people's own devices, take part with their client_id alone.
//
//	bhac_  code           1 minute, once
//	bhsa_  access token   1 hour; of one sign-in at most 16 are good at once, the last ones
//	bhsr_  refresh token  30 days, once: each gives the next; all together end a year after the consent
//
// Each is base64url of nonce (24) | XChaCha20-Poly1305 of secret (32), number (8) and the ID of the record | tag (16),
// under a key from Config.Key that never changes, with the prefix as associated data. Nothing of this is for others to
// read: it may change. What is forged costs no look into the store, and no two apps can tell that they speak of one
// account. One consent is one record of kind "signin" in the account's aggregate, with SHA-256 of the secrets; each
// step is one write, of which one wins. It is purged at its end.
//
// What was used up and comes again, a code or a refresh token, is refused. If that is more than 10 s after it was used,
// all of the sign-in ends: one of the two who have it is a thief. Within 10 s it is taken for a retry, or for two
// requests at once, and nothing ends: a client that lost the answer has to sign in again. It must be the app that comes
// again, authenticated, with a code also its verifier and redirect URI: who has seen a code in a URL can end nothing. A code that
// is refused for another reason stays as it was.
//
// A sign-in ends, with all that came of it, when the app revokes any code or token of it; when the account says so,
// with [Server.SignOut] or grant.Engine.RevokeAccount, which ends the grants as well; and when the app is removed. While
// the app is suspended it rests. grant.Engine.Revoke and RevokeApp are about grants alone.
//
// # Records
//
// Beside those of package grant, a store has these kinds of records (see package store):
//
//	access  <hash>       a token of client_credentials, by the SHA-256 of it: its App, and NotAfter, 10 minutes later,
//	                     from which on it is purged
//	signin  A.<random>   one consent, and all that came of it, in the account's aggregate: see Signing in
//	assertion  <hash>    an assertion (RFC 7523), or a proof at the token endpoint (RFC 9449), that was taken; purged a
//	                     minute after it could be good
//	purge   purge        one for all: who leases it purges; Due is the end of the lease, or when the next round begins
//	key     config.root  with InsecureKeyInStore alone: the key, in the clear. It stays for good
//
// # Standards
//
// What each requires of this server, and the test that holds it; a deviation says why.
//
//	RFC 6749 §2.3    one method of client authentication in a request             TestTokenMalformed
//	RFC 6749 §2.3.1  ID and secret are form-decoded; never in the query           TestClientsAuthenticate, TestTokenMalformed
//	RFC 6749 §3.2    POST alone, no parameter twice, unknown ones are ignored     TestTokenMalformed
//	RFC 6749 §3.1.2  the query of a redirect URI is kept                          TestAuthorizeMalformed, TestAuthorizeTaken
//	RFC 6749 §3.2.1  a public client says its client_id, and gets by it no more   TestSignInPublicClient
//	RFC 6749 §4.1.1  what an authorization request has                            TestAuthorizeMalformed, TestAuthorizeTaken
//	RFC 6749 §4.1.2  a code lives for a minute, and is good once, for its app     TestSignInCode, TestSignInCodeAgain, TestSignInOnceOnTwoNodes
//	RFC 6749 §4.1.2.1  errors lead to the app, but never to a foreign URI         TestAuthorizeMalformed, TestHoleErrorsLeadToAnUnvalidatedRedirectURI
//	RFC 6749 §4.1.3  the redirect URI of the request, the client authenticated    TestSignInCode
//	RFC 6749 §4.4    client_credentials, for authenticated clients alone          TestTokenClientCredentials
//	RFC 6749 §4.5    an extension grant has an absolute URI                       TestTokenGrantTypes
//	RFC 6749 §5.1    the answer, never to be stored                               TestTokenRedeem
//	RFC 6749 §5.2    codes of errors; 401 has a challenge                         TestTokenMalformed, TestTokenGrantTypes, TestTokenScope
//	RFC 6749 §6      a refresh token is its client's; its scope does not grow     TestSignInRefresh, TestHoleRefreshAuthenticatesNobody
//	RFC 6749 §10.5   a code is good once, and not for long                        TestTokenRedeemOnce, TestTokenHonest
//	RFC 6749 §10.12  the form is the page's own, for this account and request     TestAuthorizeForm
//	RFC 6749 §10.13  the page is in no frame                                      TestAuthorizePage
//	RFC 6750 §2      one way of sending a token, by the header alone              TestRequireBearer
//	RFC 6750 §3      a challenge, without a code where there is no token          TestRequireBearer
//	RFC 6750 §3.1    codes and statuses; the scope that is needed                 TestP10Honest
//	RFC 7009 §2.1    the client is authenticated, and only its own token ends     TestRevoke, TestRevokeMalformed
//	RFC 7009 §2.1    with a token end those that were exchanged for it            TestRevokeExchanged
//	RFC 7009 §2.2    200 for what is no token; 503 when it may still live         TestRevoke, TestRevokeStoreFails
//	RFC 7009 §2.1    with a token of a sign-in, all of it ends                    TestSignInEnds, TestHoleRevokingAccessLeavesRefreshAlive
//	RFC 7517 §4      keys: public ones alone, for signatures, once                TestParseKeyRefuses, TestParseSet
//	RFC 7517 §5      a key set of public keys alone, each with kid, alg and use   TestJWKS
//	RFC 7519 §4.1    a proof's exp and nbf, which it need not have, hold           TestDPoPRefuses
//	RFC 7521 §4.2    an assertion's type; client_id must not contradict it         TestPrivateKeyJWT, TestPrivateKeyJWTRefuses
//	RFC 7523 §3      iss, sub, aud, exp, nbf, iat; the signature; invalid_client  TestPrivateKeyJWTRefuses
//	RFC 7523 §3      jti is taken once: 64 at a time, on two servers              TestPrivateKeyJWTOnce, TestPrivateKeyJWTPurge
//	RFC 7591 §2      a client keeps to the method that it is registered for       TestAuthMethod, TestPublicClientIsRefused
//	RFC 7617 §2      ID and secret in UTF-8, and the secret may have a colon      TestTokenMalformed
//	RFC 7636 §4.3    a challenge is required, of every client, by S256            TestAuthorizeMalformed
//	RFC 7636 §4.6    the verifier is what it was made of                          TestSignInCode
//	RFC 7638 §3      thumbprints, which are our kids                              TestThumbprintOfRFC7638, TestVectorsOfRFC8037, TestJWKS
//	RFC 7662 §2.1    the caller is authenticated; no GET                          TestIntrospectMalformed
//	RFC 7662 §2.2    of a dead or foreign token nothing but {"active":false}      TestIntrospect
//	RFC 7662 §4      what is no token and what is another's: one answer, one work  TestIntrospectForeign
//	RFC 8252 §7.3    any port of a loopback address                               TestAuthorizeTaken, TestAuthorizeMalformed
//	RFC 8414 §3      metadata at the path that belongs to the issuer              TestMetadata, TestRoutesOfAnIssuerWithAPath
//	RFC 8693 §2.1    subject_token with its type; actor_token_type never alone    TestExchangeMalformed
//	RFC 8693 §2.2.1  issued_token_type, and the scope that was granted            TestExchange
//	RFC 8693 §2.2.2  invalid_request for a bad token, invalid_target              TestExchangeHonest, TestExchangeMalformed
//	RFC 8693 §4.1    act, with the actors before nested in it                     TestExchange, TestIntrospectExchanged, TestJWT, TestJWTRefused
//	RFC 8707 §2      resource is the issuer, or invalid_target                    TestAuthorizeMalformed, TestSignInCode, TestSignInRefresh
//	RFC 8707 §2      no token for another resource: invalid_target                TestTokenResource, TestExchangeMalformed
//	RFC 8725 §3      the algorithm is the key's; typ; no doubts                   TestVerifyRefuses, TestEmbeddedRefuses, TestKeysByID, TestJSONWebSignature
//	RFC 9068 §2.1    typ is at+jwt; signed, and never by none                     TestJWT, TestJWTRefused
//	RFC 9068 §2.2    the claims of a JWT access token                             TestJWT, TestJWTRefused
//	RFC 9068 §4      issuer, audience, exp, signature and typ are verified        TestJWTRefused
//	RFC 9106 §3      argon2id, with bounds                                        TestArgonVector, TestParseHash, TestHashingIsBounded
//	RFC 9110 §11.1   a scheme in any case                                         TestRequireBearer
//	RFC 9207 §2      iss in every answer of the authorization endpoint            TestAuthorizeMalformed, TestAuthorizeTaken
//	RFC 9396 §5      unknown types and members, and malformed ones, are refused   TestDetails, TestExchangeMalformed
//	RFC 9396 §6, §7  no more than was granted; the answer says what was           TestTokenDetails, TestExchange
//	RFC 9396 §9.2    authorization_details in an introspection                    TestIntrospect, TestIntrospectExchanged
//	RFC 9396 §10     authorization_details_types_supported                        TestMetadata
//	RFC 9449 §4.3    what a proof must be                                         TestDPoPRefuses, TestProofsOfRFC9449
//	RFC 9449 §4.3    htu after normalization, without query and fragment          TestSameURL, TestDPoPBehindAProxy
//	RFC 9449 §5      token_type, and no token without a proof where one must be   TestDPoP, TestDPoPRefuses, TestDPoPExchange
//	RFC 9449 §6.2    cnf, and token_type DPoP, in an introspection                TestDPoP, TestExchangeOfBoundToken
//	RFC 9449 §7.1    the schemes DPoP and Bearer; the challenge                   TestDPoP, TestDPoPRefuses
//	RFC 9449 §8, §9  nonces, at the token endpoint and the API                    TestDPoPNonce, TestDPoPByTheApp
//	RFC 9449 §11.1   a jti is taken once: 64 at a time, on two servers            TestDPoPOnce
//	RFC 9700 §2.1    redirect URIs are compared as they are written               TestAuthorizeMalformed
//	RFC 9700 §4.12   303, so that what was posted goes no further                 TestAuthorizeForm
//	RFC 9700 §4.14.2  refresh tokens rotate; one that comes again ends all         TestSignInRefresh, TestSignInOnceOnTwoNodes
//	RFC 9728 §3      a resource's metadata, at the path that belongs to it        TestResourceMetadata
//	RFC 9728 §5.1    each challenge says where that is                            TestResourceMetadata, TestRemoteResourceMetadata
//	Standard Webhooks  what signs and what verifies                               TestVectors
//	all of these       as clients speak them that know nothing of behest          TestForeignClients
//
// Deviations: a token of RFC 6749 §4.4 lives for ten minutes and has no scope, since it stands for no user. RFC 6749
// §5.2 lets a server answer 400 to a client that is not known: it is 401 here, as for a wrong secret, so that nobody
// learns which clients there are. An assertion of RFC 7523 has one aud, also in a list, since one for two servers can
// be carried by the one to the other (draft-ietf-oauth-rfc7523bis); its jti is required, and its exp is at most ten
// minutes ahead. At the authorization endpoint redirect_uri is required, also of an app that has only one; a request is
// made by GET alone, since POST is the page's form; resource may be there once; and what is malformed as a whole, such
// as a parameter that is there twice, is told to people and not to the app. A code that comes again within 10 s, or
// from another app, ends nothing. Of RFC 9449 the nonce is always required; tokens of client_credentials and of sign-in
// are not bound, for they act for nobody and carry no action; and the challenge for a request without a token names
// Bearer. The resource of RFC 9728 is the whole API; §3.3, taken by the letter, would have one for each URL of it. Of
// RFC 8693, actor_token is refused, since the client that asks is the actor; resource and audience are one value;
// expires_in in a request is ours, since the standard has no word for a shorter life.
package authz
