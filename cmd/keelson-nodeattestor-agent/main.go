// Command keelson-nodeattestor-agent is the SPIRE agent plugin keelson_tpm of type
// NodeAttestor. SPIRE starts it; it is of no use from a shell.
package main

import (
	"github.com/spiffe/spire-plugin-sdk/pluginmain"
	nodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/nodeattestor/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"

	"github.com/keelson-project/keelson/nodeattestor/agentplugin"
)

func main() {
	plugin := agentplugin.New()
	pluginmain.Serve(nodeattestorv1.NodeAttestorPluginServer(plugin), configv1.ConfigServiceServer(plugin))
}
