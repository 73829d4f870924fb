// Command keelson-nodeattestor-server is the SPIRE server plugin keelson_tpm of type
// NodeAttestor. SPIRE starts it; it is of no use from a shell.
package main

import (
	"time"

	"github.com/spiffe/spire-plugin-sdk/pluginmain"
	nodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/nodeattestor/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"

	"github.com/keelson-project/keelson/nodeattestor/serverplugin"
)

func main() {
	plugin := serverplugin.New(time.Now)
	pluginmain.Serve(nodeattestorv1.NodeAttestorPluginServer(plugin), configv1.ConfigServiceServer(plugin))
}
