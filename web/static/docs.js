"use strict";

// Swagger UI has a dark scheme, but does not choose it by itself.
const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", follow);
follow();

// The document has the parameters of a path once for all of its methods: Swagger UI puts them last.
const PathFirst = ({ React }) => ({
  wrapComponents: {
    parameters: (Parameters) => (props) => {
      const parameters = props.parameters.sortBy((parameter) => parameter.get("in") !== "path");
      return React.createElement(Parameters, { ...props, parameters });
    },
  },
});

// What a path names is written once for all operations, and a task that was created is named.
const OnePath = () => ({
  statePlugins: {
    spec: {
      wrapActions: {
        changeParamByIdentity: (change, { specSelectors }) => (place, parameter, ...value) => {
          const operations = specSelectors.operations();
          const all = operations.map((each) => [each.get("path"), each.get("method")]);
          const places = parameter.get("in") === "path" ? all : [place];
          places.forEach((each) => change(each, parameter, ...value));
        },
        setResponse: (set, { specActions, specSelectors }) => (path, method, response) => {
          set(path, method, response);
          if (response.status === 201) {
            const item = specSelectors.specJson().getIn(["paths", `${path}/{task_id}`]);
            const id = item.get("parameters").find((each) => each.get("name") === "task_id");
            specActions.changeParamByIdentity([path, method], id, response.body.id);
          }
        },
      },
    },
  },
});

SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  persistAuthorization: true,
  plugins: [PathFirst, OnePath],
  tryItOutEnabled: true,
  validatorUrl: null,
});
