// Package mesh runs Istio's sidecars in a test cluster with SPIRE's certificates, so that the AuthorizationPolicies and
// PeerAuthentications which policy-sync writes are enforced by what enforces them in a real cluster: istiod makes Envoy's
// configuration of them, pilot-agent brings it, Envoy obeys. istiod and pilot-agent are Istio's own programs; Envoy is the
// release of the Envoy project, not Istio's build of it, which exists as a container image only.
//
//	authority, err := mesh.NewAuthority()
//	istiod, err := mesh.IstiodObjects(mesh.IstiodOptions{TrustDomain: …, Image: …, Authority: authority})
//	cni, err := mesh.CNIObjects()
//	roots, err := authority.Distribute("shop", "payments")          // every namespace that has proxies
//	plugin := mesh.Plugin{Dir: …}                                   // on each node, see Plugin
//	sidecar := mesh.Sidecar{TrustDomain: …, Image: …, Socket: …}
//	err = sidecar.Inject(&deployment.Spec.Template)
//
// # What Envoy without Istio's extensions needs
//
// Istio's build has C++ extensions of its own. istiod configures them unless told otherwise, and Envoy refuses a listener with
// an extension that it does not know: the whole listener, so that nothing is served. Hence, for istiod:
//
//   - PILOT_ENABLE_ALPN_FILTER=false: no HTTP filter istio.alpn. It marks requests as HTTP in the TLS handshake, by which the
//     server's proxy tells HTTP from TCP where nobody said. Without it, say it: the port's name in the Service (http, http-…,
//     grpc-…) or appProtocol. A port that is taken for TCP is closed to rules with methods or paths, and open to rules with
//     principals and ports alone, as Istio does for any TCP port: this errs towards refusal.
//   - PILOT_ENABLE_METADATA_EXCHANGE=false: no filters istio.metadata_exchange and peer_metadata, which tell telemetry who
//     the peer is. Authorization does not use them: Envoy's RBAC filter reads the peer's certificate itself.
//   - defaultProviders.metrics is empty in the mesh configuration: no filter istio.stats.
//   - enableTracing and enablePrometheusMerge are false: nothing collects here. accessLogFile is /dev/stdout: refusals show.
//   - the bootstrap is Istio's template as it is (it calls for Envoy's own extensions only, as long as metadata discovery is
//     off, which is the default), and so are pilot-agent's command-line flags for Envoy.
//
// What was seen of it: the tests of this package, with every object as policy-sync renders it. From the API's answer to a write
// until Envoy obeys 70 to 180 ms pass, of which istiod waits 100 for further changes (PILOT_DEBOUNCE_AFTER).
//
// A change of rules makes a new filter chain. Connections that are open stay with the old one until the drain is over, and one
// more request on each is judged by the old rules; then Envoy cuts them. Istio's drain is 45 s; Sidecar.Drain makes it one. With
// the default, a caller that had kept a connection open since before a DENY was let in once more: that is what the test named
// "a connection from before is cut when the drain is over" is about.
//
// # Certificates
//
// Envoy asks for the secrets "default" (its own certificate) and "ROOTCA" (whom to trust) over SDS, at a socket in
// /var/run/secrets/workload-spiffe-uds. SPIRE's agent serves SDS on the socket of its Workload API and answers to exactly these
// two names unless its block sds says otherwise (default_svid_name, default_bundle_name), so a proxy needs that folder mounted
// and nothing else. "default" is the first identity of the process that asks, which is Envoy's: a service account needs exactly
// one SPIRE entry. "ROOTCA" comes as a SPIFFE certificate validator, bound to SPIRE's trust domain; it combines with the list of
// names that istiod expects at a peer.
//
//   - WORKLOAD_IDENTITY_SOCKET_FILE is the name of SPIRE's socket, api.sock. With Istio's default name, pilot-agent that finds
//     no socket makes its own and asks istiod for certificates; with another name it ends instead.
//   - the folder is mounted read-only: pilot-agent removes a socket that does not answer. It comes by the SPIFFE CSI driver, so
//     that the pod is one that PodSecurity "restricted" admits.
//   - an emptyDir at /var/run/secrets/credential-uds: pilot-agent serves certificates from files there, of which there are none,
//     but does not start without the folder.
//   - ENABLE_CA_SERVER=false in istiod: nobody but SPIRE issues a SPIFFE ID of the mesh. istiod then has no certificate for its
//     own port 15012 and distributes no root; both come from Authority. A proxy proves itself to istiod with a token of its pod
//     (audience istio-ca), not with a certificate.
//
// # Redirection
//
// A pod's connections have to be led to its proxy. Istio's init container does this with NET_ADMIN, which `runtime: restricted`
// refuses in whatever container of a pod, so it is Istio's CNI plugin that does it here: the real one, called by the container
// runtime after the network's own plugin, on the node. It needs no DaemonSet (that one installs and repairs). It redirects pods
// that have a container istio-proxy and the annotation sidecar.istio.io/status, reading the pod from the API, and uses
// iptables-nft of the node. The init container istio-validation, which has no capability, ends only when the redirection
// stands: a pod of a node without the plugin does not start, rather than talk in plain text.
//
// What is not redirected, as in any mesh with Istio: connections of user and group 1337, and connections to ports 15020, 15021
// and 15090. A kubelet's HTTP and TCP probes of the application come in plain text and are refused under STRICT; use exec
// probes, or none. The proxy's own probe is at 15021.
//
// # What differs from a cluster of production
//
// There is no injector (Sidecar.Inject is called by who makes the pod), no gateway, one istiod. Its validating webhook is in force where
// IstiodOptions.Validation is set, from the beginning and not once istiod is ready: until it is, nothing of Istio's kinds is written. The proxies
// report no telemetry. A pod's annotations are not shown to pilot-agent, so that their author cannot name another istiod.
package mesh
