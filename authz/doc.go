// Package authz is the server: it lets an app act as a user, because that user just asked.
//
// The laws:
//
//  1. No operation, no token. A delegation token exists only because the account in it did, there, what a [grant.Trigger] predetermined.
//  2. What travels is a one-time code, never a usable token. The app redeems it with its own secret.
//  3. A handler behind [Server.Require] runs only after a use was spent, and acts as the delegation says: for that account, through that app, in that domain.
//  4. The client learns the code, the log the cause. The holder of a real token learns why it failed; a stranger gets one answer, whatever was wrong.
//  5. A forged token costs no look into the store. A store or a Permit that does not answer lets nothing through.
//  6. New starts nothing and touches nothing global. Run owns every goroutine.
//
// The endpoints, below the issuer and Config.Prefix:
//
//	POST /oauth2/token       RFC 6749: the operation grant (urn:behest:grant-type:operation, parameter code) and client_credentials
//	POST /oauth2/introspect  RFC 7662
//	POST /oauth2/revoke      RFC 7009
//	GET  /oauth2/grants      the app's waiting grants: ?wait=30s is a long poll
//	GET  /.well-known/oauth-authorization-server  RFC 8414
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
// # Two servers
//
// Servers with one Key and one Store act as one: a code issued by the one is redeemed at the other, once; a token is
// spent on both against one count; a revocation on one holds for the next use on the other. Each may Run. What one
// issues the others find within 250 ms, or at once with a [Waker].
package authz
